"""A unit of work: neighbours in the list of pictures become one shard, whoever makes it, and whenever."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from dove_data.plan import shard_path
from dove_data.settings import DataError, Settings
from dove_data.shards import Row, read_shard, shard_bytes
from dove_ext.atomic import atomic_write
from dove_ext.errors import DoveError, ImageError, QueryError
from dove_ext.images.index import ImageIndex
from dove_ext.models.dove import DoveModel
from dove_ext.models.sets import encode_set
from dove_ext.tokens import DoveTokens

Unit = tuple[int, ImageIndex]
"""Its number, and its pictures."""


@dataclass(frozen=True)
class Job:
    """What a worker has to know.

    Attributes:
        folder: of the set that is made.
        settings: what it is made with.
        plan: the plan's `plan_id`.
    """

    folder: Path
    settings: Settings
    plan: str


def units_of(index: ImageIndex, size: int) -> Iterator[Unit]:
    """The list cut into units of `size` pictures, one at a time."""
    for unit, start in enumerate(range(0, len(index), size)):
        yield unit, index.part(start, min(start + size, len(index)))


class Maker:
    """Makes shards, one after the other; the model is loaded for the first that is not there.

    On a CPU it computes on one thread: results are then the same to the bit for any number of workers.

    Args:
        job: what to make.
        device: such as "cuda:1".
    """

    def __init__(self, job: Job, device: str) -> None:
        self._job, self._device = job, device
        self._model: DoveModel | None = None

    def __call__(self, unit: int, part: ImageIndex) -> Row:
        """Make a shard, or find it whole.

        Raises:
            DoveError: if it cannot be written, or the settings do not fit the model.
        """
        settings = self._job.settings
        path = shard_path(self._job.folder, unit, settings.format)
        found = read_shard(path, self._job.plan, unit)
        if isinstance(found, Row):
            return found
        threads = torch.get_num_threads()
        if self._device == "cpu":
            torch.set_num_threads(1)
        try:
            tokens, unreadable = self._encode(part)
        finally:
            torch.set_num_threads(threads)
        pictures, count = len(part) - len(unreadable), len(tokens.tokens)
        about = {
            "plan": self._job.plan, "unit": unit, "pictures": pictures, "tokens": count,
            "unreadable": unreadable,
        }  # fmt: skip
        payload, checksum = shard_bytes(tokens, about, settings.format)
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as temporary:
            temporary.write_bytes(payload)
        return Row(unit, pictures, count, len(payload), checksum, tuple(unreadable), made=True)

    def _encode(self, part: ImageIndex) -> tuple[DoveTokens, list[tuple[int, str]]]:
        settings, model = self._job.settings, self._loaded()
        unreadable: list[tuple[int, str]] = []
        queries: str | Sequence[str] | None = settings.query
        if settings.query_column is not None:
            queries = self._queries(part, settings.query_column)
        options: dict[str, Any] = {"drop_empty": True} if settings.drop_empty else {}
        done: list[int] = []
        parts: list[DoveTokens] = []
        encoded = encode_set(
            partial(_encode, model, settings.lengths),
            part,
            model.config.image_size,
            on_problem=lambda i, error: unreadable.append((i, _reason(part, i, error))),
            batch_size=settings.batch_size,
            fit=settings.fit,  # type: ignore[arg-type]
            tiles=settings.tiles,
            query=queries,
            **options,
        )
        for batch, tokens in encoded:
            done += batch
            parts.append(tokens)
        if not parts:
            return _nothing(model), unreadable
        tokens = DoveTokens.cat(parts)
        grid = tokens.tiles
        rows = range(len(done)) if grid is None else [place.picture for place in grid.places]
        return replace(tokens, names=tuple(part.short_name(done[row]) for row in rows)), unreadable

    def _loaded(self) -> DoveModel:
        if self._model is None:
            settings = self._job.settings
            dtype = getattr(torch, settings.dtype)
            self._model = DoveModel.from_pretrained(settings.model, device=self._device, dtype=dtype)
        return self._model

    def _queries(self, part: ImageIndex, column: str) -> list[str]:
        """What each picture is asked; one whose query cannot be used counts as one that cannot be read."""
        queries = []
        for i in range(len(part)):
            text = part.text(i, column) or "null"
            try:
                self._loaded().queries([text], 1)
            except QueryError as error:
                if self._loaded().tokenizer is None:
                    raise
                part.refuse(i, f"cannot be asked {text[:40]!r}: {error}")
                text = "null"
            queries.append(text)
        return queries


def _encode(model: DoveModel, lengths: dict[str, Any], images: Any, **options: Any) -> DoveTokens:
    try:
        return model.encode(images, **lengths, **options)
    except DoveError:
        raise
    except ValueError as error:  # of a length that this model does not have
        raise DataError(str(error)) from error


def _reason(part: ImageIndex, i: int, error: ImageError) -> str:
    """The same wherever the pictures lie, and in every process."""
    text = str(error).replace(repr(part.name(i)), repr(part.short_name(i)))
    return re.sub(r" at 0x[0-9a-fA-F]+", "", text)


def _nothing(model: DoveModel) -> DoveTokens:
    """The tokens of no pictures."""
    config = model.config
    tokens = torch.zeros(0, config.token_width, dtype=model.dtype)
    return DoveTokens(
        tokens, torch.zeros(1, dtype=torch.int32), config.num_tokens, model=config.name, names=()
    )
