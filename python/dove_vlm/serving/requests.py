"""What a served request may ask of its pictures, whichever stack serves it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from dove_ext.config import IMAGE_LENGTHS
from dove_ext.images.tiles import tile_limits
from dove_ext.tokens.lengths import LengthRule
from dove_ext.tokens.tiles import MAX_TILES
from dove_vlm.placeholders import check_counts
from dove_vlm.tiles import NO_TILES, TOKEN

PER_REQUEST = (*IMAGE_LENGTHS, "query", "fit", "tiles", "drop_empty")
"""Options of `DoveImageProcessor` that a request may set."""

PER_SERVER = (*PER_REQUEST, "device", "batch_size")
"""Those that whoever starts the server may set for all."""

NUMBERS = ("eos_threshold", "target_psnr")


def image_options(
    request: Mapping[str, Any],
    server: Mapping[str, Any],
    slots: int,
    *,
    tile_separators: bool = False,
    tiles: Any = None,
) -> dict[str, Any]:
    """The image processor's options for the pictures of one request.

    A request that says anything of lengths has none of the server's limits, as with the processor's own; one
    that asks for tiles has none of its `fit`, and one that asks for `fit` none of its tiles.

    Args:
        request: `mm_processor_kwargs` of the request, flat or in `images_kwargs`.
        server: those of the server.
        slots: K of the model, the most tokens of an image, or of a tile.
        tile_separators: whether the model reads tiles.
        tiles: the image processor's own.

    Returns:
        dict: keyword arguments of `DoveImageProcessor.preprocess`.

    Raises:
        ValueError: in one sentence, if there is an option that may not be set there, a length rule or tiles
            mean nothing, or the model reads no tiles.
    """
    asked, given = _flat(request, PER_REQUEST), _flat(server, PER_SERVER)
    late = {name for name in IMAGE_LENGTHS if any(other in asked for other in IMAGE_LENGTHS)}
    late |= {"fit"} if "tiles" in asked else set()
    late |= {"tiles", "drop_empty"} if "fit" in asked else set()
    options = {**{name: value for name, value in given.items() if name not in late}, **asked}
    tiles = options.get("tiles", tiles)
    if tiles is not None:
        tile_limits(tiles)
        if not tile_separators:
            raise ValueError(NO_TILES)
        if "fit" in options:
            raise ValueError("fit says how a picture becomes square, which tiles need not; leave one out")
    rule = LengthRule(**{name: value for name, value in options.items() if name in IMAGE_LENGTHS})
    if tiles is not None:  # numbers are the picture's, but this; the encoder knows how many tiles it has
        LengthRule(min_tokens=rule.min_tokens).check(slots, images=1)
        slots *= MAX_TILES + 1
    rule.check(slots, images=1)
    return options


def _flat(kwargs: Mapping[str, Any], allowed: Sequence[str]) -> dict[str, Any]:
    images = kwargs.get("images_kwargs") or {}
    if not isinstance(images, Mapping):
        raise ValueError(f"images_kwargs must be a table of options, got {images!r}")
    found = {name: value for name, value in kwargs.items() if name != "images_kwargs"} | dict(images)
    found = {name: value for name, value in found.items() if value is not None}
    for name, value in found.items():
        if name == "token_budget":
            raise ValueError(
                "token_budget is for all images of a call, but a server keeps each image's tokens by itself; "
                "ask for num_tokens or max_tokens of each"
            )
        if name not in allowed:
            raise ValueError(f"an image has no option {name!r} here; it may have {', '.join(allowed)}")
        if name == "query" and not isinstance(value, str):
            raise ValueError(f"query must be one text for all images of the request, got {value!r}")
        if name in NUMBERS and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise ValueError(f"{name} must be a number, got {value!r}")
        if name == "drop_empty" and not isinstance(value, bool):
            raise ValueError(f"drop_empty must be true or false, got {value!r}")
    return found


def check_prompt(places: int, images: int, image_token: str) -> None:
    """Refuse a prompt whose placeholders are not those of its pictures.

    Args:
        places: placeholders in it.
        images: pictures that came with it.
        image_token: how they are written.

    Raises:
        ValueError: if the numbers differ.
    """
    if places != images:
        raise ValueError(
            f"the prompt has {places} {image_token} for {images} images; write {image_token} once where each "
            "image belongs"
        )


def rows_of_images(
    tokens: Tensor, counts: Sequence[int], ends: Tensor | None, images: int, width: int
) -> tuple[list[Tensor], list[Tensor]]:
    """Tokens of one call as a list, and where tiles end, compared with all that is known of them.

    What leaves here is what the engine works with: there, one row too few would end every request in flight.

    Args:
        tokens: [T, D], all images' one after the other.
        counts: placeholders of each.
        ends: int8 [P], the kind of each placeholder (`tiles.lay_out`); None: all are tokens.
        images: how many images there were.
        width: D of the model.

    Returns:
        tuple: [n_i, D] of each image, and the kinds of its placeholders, int8 [P_i], in memory of their own.

    Raises:
        ValueError: if something does not fit.
    """
    if len(counts) != images:
        raise ValueError(f"{len(counts)} images were counted of {images}; this is a fault of dove_vlm")
    if tokens.dim() != 2 or tokens.shape[1] != width:
        raise ValueError(
            f"the encoder's tokens are {list(tokens.shape)}, this model reads [T, {width}]; save model and "
            "processor into one folder"
        )
    if ends is None:
        ends = torch.zeros(sum(counts), dtype=torch.int8)
    kinds = [part.clone() for part in ends.split(list(counts))] if len(ends) == sum(counts) else []
    lengths = [int((part == TOKEN).sum()) for part in kinds]
    if min(lengths, default=0) < 1 or sum(lengths) != len(tokens):
        raise ValueError(
            f"images were counted as {list(counts)} placeholders, {sum(lengths)} of them tokens, and have "
            f"{len(tokens)} tokens together; this is a fault of dove_vlm"
        )
    return [part.clone() for part in tokens.split(lengths)], kinds


def joined_rows(parts: Sequence[Tensor], ends: Sequence[Tensor], counts: Sequence[int]) -> list[int]:
    """How many rows the engine owes for each image, if they are as many as were counted.

    Args:
        parts: [n_i, D] of each image.
        ends: int8 [P_i], the kinds of its placeholders.
        counts: what the processor counted of each.

    Raises:
        ValueError: naming the first image whose numbers differ.
    """
    lengths = [len(kinds) for kinds in ends]
    check_counts(lengths, counts)
    between = [int((kinds != TOKEN).sum()) for kinds in ends]
    check_counts([len(part) + more for part, more in zip(parts, between, strict=True)], counts)
    return lengths
