"""What a served request may ask of its pictures, whichever stack serves it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from dove_ext.tokens.lengths import LengthRule
from dove_vlm.placeholders import check_counts

LENGTHS = ("num_tokens", "max_tokens", "eos_threshold", "target_psnr")
PER_REQUEST = (*LENGTHS, "query", "fit")
"""Options of `DoveImageProcessor` that a request may set."""

PER_SERVER = (*PER_REQUEST, "device", "batch_size")
"""Those that whoever starts the server may set for all."""

NUMBERS = ("eos_threshold", "target_psnr")


def image_options(request: Mapping[str, Any], server: Mapping[str, Any], slots: int) -> dict[str, Any]:
    """The image processor's options for the pictures of one request.

    A request that says anything of lengths has none of the server's limits, as with the processor's own.

    Args:
        request: `mm_processor_kwargs` of the request, flat or in `images_kwargs`.
        server: those of the server.
        slots: K of the model, the most tokens of an image.

    Returns:
        dict: keyword arguments of `DoveImageProcessor.preprocess`.

    Raises:
        ValueError: in one sentence, if there is an option that may not be set there, or a length rule means
            nothing.
    """
    asked, given = _flat(request, PER_REQUEST), _flat(server, PER_SERVER)
    if any(name in asked for name in LENGTHS):
        given = {name: value for name, value in given.items() if name not in LENGTHS}
    options = {**given, **asked}
    LengthRule(**{name: value for name, value in options.items() if name in LENGTHS}).check(slots, images=1)
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
    return found


def check_whole(tile_separators: bool, tiles: Any) -> None:
    """Refuse a model for pictures in tiles: an engine knows no ends of these, nor most tokens of a picture.

    Args:
        tile_separators: of the model's configuration.
        tiles: of its image processor.

    Raises:
        ValueError: if either is set.
    """
    if tile_separators or tiles is not None:
        raise ValueError(
            "this model reads pictures in tiles, which vLLM's plugin does not serve yet; serve its language "
            "model with dove_vlm.serving.prompt_embeds, or save model and processor without tiles"
        )


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


def rows_of_images(tokens: Tensor, counts: Sequence[int], images: int, width: int) -> list[Tensor]:
    """Tokens of one call as a list, compared with all that is known of them.

    What leaves here is what the engine works with: there, one row too few would end every request in flight.

    Args:
        tokens: [T, D], all images' one after the other.
        counts: how many of each.
        images: how many images there were.
        width: D of the model.

    Returns:
        list[Tensor]: [n_i, D] of each image, in memory of its own.

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
    if min(counts, default=1) < 1 or sum(counts) != len(tokens):
        raise ValueError(
            f"images were counted as {list(counts)} tokens and have {len(tokens)} together; this is a fault "
            "of dove_vlm"
        )
    return [part.clone() for part in tokens.split(list(counts))]


def joined_rows(parts: Sequence[Tensor], counts: Sequence[int]) -> list[int]:
    """How many rows the engine was handed of each image, if they are as many as were counted.

    Args:
        parts: [n_i, D] of each image.
        counts: what the processor counted of each.

    Raises:
        ValueError: naming the first image whose numbers differ.
    """
    lengths = [len(part) for part in parts]
    check_counts(lengths, counts)
    return lengths
