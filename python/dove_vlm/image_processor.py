"""Images to tokens and their counts, in one pass of the encoder."""

from __future__ import annotations

import os
from copy import copy
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import BaseImageProcessor, BatchFeature
from transformers.processing_utils import ImagesKwargs

from dove_ext.atomic import atomic_write, make_writable_folder
from dove_ext.config import DEFAULT_MODEL
from dove_ext.errors import CheckpointError
from dove_ext.images.prepare import prepare_images
from dove_ext.images.tiles import TileCount
from dove_ext.models.dove import DoveModel
from dove_ext.models.text import Asked
from dove_ext.tokens import DoveTokens
from dove_ext.tokens.lengths import LengthRule
from dove_vlm.encoder import QUERY_TOKENIZER, Checkpoint, query_tokenizer
from dove_vlm.images import flat
from dove_vlm.tiles import lay_out
from dove_vlm.vision import DoveVisionModel

RULE = tuple(field.name for field in fields(LengthRule))
HUB = ("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder", "proxies")


class DoveImagesKwargs(ImagesKwargs, total=False):
    """What a request may ask for, see `DoveImageProcessor.preprocess`."""

    num_tokens: int | None
    min_tokens: int | None
    max_tokens: int | None
    eos_threshold: float | None
    token_budget: int | None
    target_psnr: float | None
    query: Any
    fit: str | None
    tiles: Any
    drop_empty: bool | None
    batch_size: int | None
    return_pixel_values: bool | None


class DoveImageProcessor(BaseImageProcessor):
    """Turns images into as many tokens as each deserves.

    Counts and tokens come from the same pass: the counts make room in the prompt, and the language model gets
    these tokens and no others. So the encoder works here, and not in the model, whose tower is for training.

    Args:
        encoder: a dove_ext model's name, folder or hub id; or a `DoveModel` or `DoveVisionModel`, which is
            then shared, with its device and dtype. `from_pretrained` takes the tower in the checkpoint
            instead, in float32 on the CPU.
        fit: how a picture becomes square, see `dove_ext.prepare_images`; "pad" is the paper's (B.1).
        tiles: cut each picture into a grid of squares instead, as `DoveModel.encode` does: the most tiles, a
            pair of fewest and most, or "auto". The model needs `tile_separators`.
        num_tokens, min_tokens, max_tokens, eos_threshold, token_budget, target_psnr: how lengths are chosen
            where a request says nothing of it (`DoveModel.encode`).
        query: what the tokens are to tell of where a request does not say (Q-DOVE, 2.3).
        batch_size: images that the encoder takes at once.
    """

    model_input_names = ["image_tokens", "num_image_tokens", "image_tile_ends", "pixel_values"]  # noqa: RUF012 (transformers' way)
    valid_kwargs = DoveImagesKwargs

    def __init__(
        self,
        encoder: str | os.PathLike[str] | DoveModel | DoveVisionModel | None = DEFAULT_MODEL,
        *,
        fit: str = "pad",
        tiles: Any = None,
        num_tokens: int | None = None,
        min_tokens: int | None = None,
        max_tokens: int | None = None,
        eos_threshold: float | None = None,
        token_budget: int | None = None,
        target_psnr: float | None = None,
        query: str | None = None,
        batch_size: int = 32,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.fit, self.tiles, self.query, self.batch_size = fit, tiles, query, batch_size
        self.num_tokens, self.min_tokens, self.max_tokens = num_tokens, min_tokens, max_tokens
        self.eos_threshold, self.token_budget, self.target_psnr = eos_threshold, token_budget, target_psnr
        self._name: str | None = None
        self._dove: DoveModel | None = None
        self._checkpoint: Checkpoint | None = None
        if isinstance(encoder, DoveVisionModel | DoveModel):
            self.encoder = encoder
        elif encoder is not None:
            self._name = os.fspath(encoder)

    # --- The encoder ----------------------------------------------------------------------------------

    @property
    def encoder(self) -> DoveModel:
        """The model that makes the tokens; loaded when it is first needed.

        Raises:
            CheckpointError: if there is none, or its files are damaged.
        """
        if self._dove is None and self._checkpoint is not None:
            self._dove = self._checkpoint.load()
        if self._dove is None and self._name is not None:
            self._dove = DoveModel.from_pretrained(self._name)
        if self._dove is None:
            where = (
                "there is no encoder"
                if self._checkpoint is None
                else f"{self._checkpoint.name} holds no encoder"
            )
            raise CheckpointError(
                f"{where}: save the model into the folder of the processor, or give one: "
                "DoveImageProcessor(encoder=...)"
            )
        return self._dove

    @encoder.setter
    def encoder(self, encoder: DoveModel | DoveVisionModel) -> None:
        self._dove = encoder.dove if isinstance(encoder, DoveVisionModel) else encoder
        self._name = None

    def __deepcopy__(self, memo: dict[int, Any]) -> DoveImageProcessor:
        return copy(
            self
        )  # settings are plain values, and copies share the encoder: transformers copies to print

    # --- Images to tokens -----------------------------------------------------------------------------

    def preprocess(
        self,
        images: Any,
        *,
        return_tensors: str | None = None,
        device: str | torch.device | None = None,
        return_pixel_values: bool | None = None,
        fit: str | None = None,
        tiles: TileCount | None = None,
        drop_empty: bool | None = None,
        batch_size: int | None = None,
        query: Asked = None,
        **kwargs: Any,
    ) -> BatchFeature:
        """Tokens of images, and how many of each.

        Args:
            images: all that `DoveModel.encode` takes, URLs, and lists of lists, one a prompt; or a
                `DoveTokens`, which was made before and is passed on.
            return_tensors: "pt" or "np"; None: tensors and a list of numbers.
            device: where the encoder works from now on; None: where it is.
            return_pixel_values: give the pictures instead of the tokens, with the same counts, for a gradient
                into the model's tower.
            fit: as for the class.
            tiles: likewise.
            drop_empty: with tiles and a query, leave out tiles that show nothing of it (`DoveModel.encode`).
            batch_size: likewise.
            query: a text for all images, or a list with one an image.
            **kwargs: `num_tokens`, `min_tokens`, `max_tokens`, `eos_threshold`, `token_budget` (over all
                images of the call), `target_psnr`. A request with any of
                them has none of the processor's own.

        Returns:
            BatchFeature: `image_tokens` [T, D], all images' one after the other, and `num_image_tokens` int64
            [N], which sum to T. Of tiles all of a picture's, the thumbnail's first, then row by row, and
            `image_tile_ends` int8 [P]: what each placeholder stands for, 0 a token, 1 the end of a tile, 2
            that of a row of tiles; then `num_image_tokens` counts these ends, too, and sums to P. With
            `return_pixel_values` in place of tokens `pixel_values` float32 [N, 3, S, S] in [-1, 1].

        Raises:
            ValueError: as `DoveModel.encode`, or for an option that this processor has not.
            ImageError, QueryError: likewise.
        """
        rule = {name: kwargs.pop(name) for name in RULE if kwargs.get(name) is not None}
        unknown = [name for name, value in kwargs.items() if value is not None and name not in RULE]
        if unknown:
            raise ValueError(f"DoveImageProcessor has no option {unknown[0]!r}; leave it out")
        asked = self.query if query is None else query
        if isinstance(images, DoveTokens):
            late = {"query": query, "tiles": tiles, "drop_empty": drop_empty}
            late["return_pixel_values"] = return_pixel_values or None
            tokens = self._made_before(images, rule, late)
            return self._features(tokens, return_tensors)
        images = flat(images)
        tiles = self.tiles if tiles is None else tiles
        if tiles is not None and fit is not None:
            raise ValueError("fit says how a picture becomes square, which tiles need not; leave one out")
        fit = self.fit if fit is None else fit
        dove = self.encoder
        if device is not None:
            dove.to(device)
        rule = rule or {name: value for name in RULE if (value := getattr(self, name)) is not None}
        if not images:
            raise ValueError("there is no image; leave images out for prompts that have none")
        if not return_pixel_values:
            shape: dict[str, Any] = {"fit": fit} if tiles is None else {"tiles": tiles}
            tokens = dove.encode(
                images,
                query=asked,
                drop_empty=bool(drop_empty),
                batch_size=batch_size or self.batch_size,
                **shape,
                **rule,
            )
            return self._features(tokens, return_tensors)
        if tiles is not None:
            raise ValueError(
                "the model's tower takes whole pictures; leave return_pixel_values out, or tiles"
            )
        if asked is not None:
            raise ValueError(
                "the model's tower takes no query; leave return_pixel_values out, or this processor's query"
            )
        pixels = prepare_images(images, dove.config.image_size, fit=fit)
        tokens = dove.encode((pixels + 1) / 2, batch_size=batch_size or self.batch_size, **rule)
        return self._features(tokens, return_tensors, pixels)

    def _made_before(self, tokens: DoveTokens, rule: dict[str, Any], late: dict[str, Any]) -> DoveTokens:
        strange = [name for name in rule if name != "max_tokens"]
        strange += [name for name, value in late.items() if value is not None]
        if strange:
            raise ValueError(
                f"{strange[0]} comes too late for images that are tokens already; encode them with it, or "
                "pass the pictures"
            )
        if rule and tokens.tiles is not None:
            raise ValueError(
                "max_tokens is a picture's, over all of its tiles, and comes too late for tiles that are "
                "tokens already; encode them with it, or pass the pictures"
            )
        return tokens.truncate(rule["max_tokens"]) if rule else tokens

    def _features(
        self, tokens: DoveTokens, return_tensors: str | None, pixels: Tensor | None = None
    ) -> BatchFeature:
        ends: dict[str, Any] = {}
        if tokens.tiles is None:
            counts = tokens.lengths.tolist()
        else:
            tokens, counts, ends["image_tile_ends"] = lay_out(tokens)
        values = {"image_tokens": tokens.tokens} if pixels is None else {"pixel_values": pixels}
        numbers = counts if return_tensors is None else torch.tensor(counts)
        return BatchFeature({**values, "num_image_tokens": numbers, **ends}, tensor_type=return_tensors)

    # --- Files ----------------------------------------------------------------------------------------

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike[str], **kwargs: Any) -> Any:
        """As every image processor's; its encoder is the tower of the checkpoint that it lies with.

        Raises:
            OSError: if there is no image processor.
        """
        encoder = kwargs.pop("encoder", None)
        made = super().from_pretrained(pretrained_model_name_or_path, **kwargs)
        processor = made[0] if isinstance(made, tuple) else made
        hub = {name: kwargs[name] for name in HUB if kwargs.get(name)}
        processor._checkpoint = Checkpoint(pretrained_model_name_or_path, **hub)
        if encoder is not None:
            processor._checkpoint = None
            processor._name = None if isinstance(encoder, DoveVisionModel | DoveModel) else os.fspath(encoder)
            if processor._name is None:
                processor.encoder = encoder
        return made

    def to_dict(self) -> dict[str, Any]:
        """Its settings; weights are the model's to save."""
        names = ("fit", "tiles", "query", "batch_size", *RULE)
        settings = {name: value for name in names if (value := getattr(self, name)) is not None}
        return {"image_processor_type": type(self).__name__, "encoder": self._name, **settings}

    def save_pretrained(self, save_directory: str | os.PathLike[str], **kwargs: Any) -> list[str]:
        """As every image processor's, and the tokenizer of queries of an encoder that reads them."""
        files: list[str] = super().save_pretrained(save_directory, **kwargs)
        return [*files, *self.save_query_tokenizer(Path(save_directory))]

    def save_query_tokenizer(self, folder: Path) -> list[str]:
        """Write `QUERY_TOKENIZER`, if the encoder reads queries; returns what was written."""
        text = query_tokenizer(self._dove or self._name, self._checkpoint)
        if text is None:
            return []
        with atomic_write(make_writable_folder(folder) / QUERY_TOKENIZER) as temporary:
            temporary.write_bytes(text.encode("utf-8"))
        return [str(folder / QUERY_TOKENIZER)]
