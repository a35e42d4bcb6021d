"""What the tokens of a set depend on besides its pictures; a run that goes on must ask for the same."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from dove_ext.config import DEFAULT_MODEL, IMAGE_LENGTHS
from dove_ext.errors import DoveError

SAFETENSORS, WEBDATASET = "safetensors", "webdataset"
FORMATS = (SAFETENSORS, WEBDATASET)
ENGINES = ("local", "ray")
MOST_UNREADABLE = 0.001
"""The share of pictures that may be unreadable; one always may."""


class DataError(DoveError, ValueError):
    """A set of tokens, or what one is to be made of, cannot be used."""


@dataclass(frozen=True)
class Settings:
    """How pictures become a set of tokens.

    Attributes:
        model: a shipped name, a folder, or a hub id.
        dtype: "float32" or "bfloat16", of the weights and of the tokens.
        device: "cpu", "cuda" or "cuda:N". Only its kind is part of the plan.
        batch_size: pictures, or tiles, that run at once; batches begin anew in each shard.
        shard_size: pictures of a shard.
        num_tokens: as for `DoveModel.encode`.
        min_tokens: likewise.
        max_tokens: likewise.
        eos_threshold: likewise.
        target_psnr: likewise. There is no `token_budget`, which a picture would share with those that happen
            to stand beside it.
        query: likewise, one for all pictures.
        query_column: of parquet files, the query of each picture; a row without one asks for the whole.
        image_column: of parquet files.
        key_column: of parquet files, what pictures are called; None: file and number of the row.
        fit: as for `DoveModel.encode`.
        tiles: likewise.
        drop_empty: likewise.
        format: of the shards, `SAFETENSORS` or `WEBDATASET`.
    """

    model: str = DEFAULT_MODEL
    dtype: str = "float32"
    device: str = "cpu"
    batch_size: int = 16
    shard_size: int = 1000
    num_tokens: int | None = None
    min_tokens: int | None = None
    max_tokens: int | None = None
    eos_threshold: float | None = None
    target_psnr: float | None = None
    query: str | None = None
    query_column: str | None = None
    image_column: str = "image"
    key_column: str | None = None
    fit: str = "crop"
    tiles: Any = None
    drop_empty: bool = False
    format: str = SAFETENSORS

    def __post_init__(self) -> None:
        if self.query is not None and self.query_column is not None:
            raise DataError("query is one for all pictures, query_column one for each; give one of them")
        if self.format not in FORMATS:
            raise DataError(f"format must be one of {', '.join(map(repr, FORMATS))}, got {self.format!r}")
        if self.shard_size < 1 or self.batch_size < 1:
            raise DataError("shard_size and batch_size must be at least 1")

    @property
    def lengths(self) -> dict[str, Any]:
        """The length controls that are given, as arguments of `DoveModel.encode`."""
        return {name: getattr(self, name) for name in IMAGE_LENGTHS if getattr(self, name) is not None}

    def plain(self) -> dict[str, Any]:
        """For a plan: values of JSON, without the model's name, which its weights stand for."""
        values = {item.name: getattr(self, item.name) for item in fields(self) if item.name != "model"}
        values["device"] = self.device.partition(":")[0]
        values["tiles"] = list(self.tiles) if isinstance(self.tiles, tuple) else self.tiles
        return values
