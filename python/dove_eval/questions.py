"""What is asked about pictures, and where it is: queries with boxes in shards, and mosaics."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from dove_eval.datasets import ImageSet, escape, find_images
from dove_eval.sources import DatasetError, Item
from dove_ext.errors import ImageError, QueryError
from dove_ext.images.index import ImageIndex
from dove_ext.images.labels import Notes
from dove_ext.images.mosaics import Mosaics, plural
from dove_ext.images.regions import Regions, box_mask, read_shards
from dove_ext.models.dove import DoveModel
from dove_ext.models.text import no_weights, queries

PHOTOGRAPHS, MOSAICS = "photographs", "mosaics"
SEED = 0  # of the mosaics
LEAST = 0.01  # of a picture that its boxes cover, or they are too small to measure anything in
# What a query says besides the things that it asks for.
_TEMPLATE = frozenset(
    [
        "a",
        "all",
        "an",
        "and",
        "any",
        "are",
        "at",
        "by",
        "for",
        "from",
        "in",
        "is",
        "it",
        "of",
        "on",
        "or",
        "the",
        "there",
        "to",
        "what",
        "where",
        "with",
    ]
)


@dataclass(frozen=True)
class Question:
    """A query about a picture.

    Attributes:
        number: which picture of its set; names may repeat.
        picture: its name.
        query: a text.
        boxes: float32 [n, 4], x0, y0, x1, y1 of what is asked for, as fractions of the squashed picture.
        other: a query about something else in this picture; None where nothing else is known of it.
    """

    number: int
    picture: str
    query: str
    boxes: Tensor
    other: str | None

    def mask(self, size: int) -> Tensor:
        """Float32 [size, size], 1 inside the boxes."""
        return box_mask(self.boxes, size)


@dataclass(frozen=True)
class Questions:
    """Questions in a fixed order, those about one picture side by side.

    Attributes:
        kind: `PHOTOGRAPHS` or `MOSAICS`.
        asked: at least one.
        images: an item for each of them: its picture.
        notes: sentences on what was left out.
    """

    kind: str
    asked: Sequence[Question]
    images: ImageSet
    notes: Sequence[str]


def require_reader(model: DoveModel) -> None:
    """Refuse a model that reads no texts.

    Raises:
        QueryError: saying what it lacks.
    """
    if not model.config.query_vocab_size:
        raise QueryError(no_weights(model.config, "measurement"))
    queries("null", 1, model.config, model.tokenizer)


def read(paths: Sequence[str | Path], *, needed: bool) -> Regions:
    """Queries with boxes in tar shards, see `dove_ext.images.regions.read_shards`.

    Raises:
        DatasetError: naming what cannot be read, or if there are none and some are `needed`.
    """
    try:
        regions = read_shards([Path(path) for path in paths])
    except ImageError as error:
        raise DatasetError(str(error)) from error
    if needed and not len(regions):
        raise DatasetError(
            f"{regions.source} has no query: {regions.why_empty()}; give tar shards whose JSON holds `boxes` "
            "and `queries`"
        )
    return regions


def of_shards(
    regions: Regions, paths: Sequence[str | Path], model: DoveModel, limit: int | None
) -> Questions:
    """Questions about photographs.

    The other query of a picture is the next one of it that has other boxes.

    Args:
        regions: of `read`.
        paths: where they come from.
        model: that reads the texts.
        limit: at most so many, evenly spread.

    Raises:
        DatasetError: if no query is left.
    """
    size = model.config.image_size
    readable = _Readable(model)
    kept: list[tuple[Question, Item]] = []
    small = 0
    for i, region in enumerate(regions):
        if region.query is None or not readable(region.query):
            continue
        if not box_mask(region.boxes, size).mean() > LEAST:
            small += 1
            continue
        beside = regions.beside(i)
        turn = (regions[k] for k in [*(k for k in beside if k > i), *(k for k in beside if k < i)])
        others = (
            other.query
            for other in turn
            if not torch.equal(other.boxes, region.boxes) and other.query and readable(other.query)
        )
        first = min([i, *beside])
        question = Question(first, region.name, region.query, region.boxes, next(others, None))
        name = escape(f"{Path(region.name).name}: {region.query}")
        kept.append((question, Item(name, region.open)))
    notes = [*regions.report()[1:], *readable.notes(regions.source)]
    if small:
        notes.append(
            f"{regions.source}: {small} queries left out: boxes that cover at most {LEAST:.0%} of the picture"
        )
    stamp = find_images(paths).digest
    return _questions(PHOTOGRAPHS, kept, regions.source, stamp, notes, limit)


def of_mosaics(paths: Sequence[str | Path], count: int, model: DoveModel, limit: int | None) -> Questions:
    """Mosaics of labelled pictures, each asked for one of its labels, see `dove_ext.images.mosaics.Mosaics`.

    Args:
        paths: see there.
        count: so many.
        model: that reads the queries.
        limit: at most so many of them.

    Raises:
        DatasetError: naming what cannot be read, or if there are too few labels.
    """
    try:
        mosaics = Mosaics(paths, model.config.image_size, SEED)
        readable, failed = _Readable(model), dict[str, str]()
        kept = []
        for position in range(count):
            mosaic = mosaics[position]
            failed.update(mosaic.skipped)
            if readable(mosaic.query):
                other = next((text for text, _ in mosaic.others if readable(text)), None)
                name = f"mosaic {position}"
                question = Question(position, name, mosaic.query, mosaic.boxes, other)
                kept.append((question, Item(f"{name}: {mosaic.query}", partial(_pixels, mosaics, position))))
    except ImageError as error:
        raise DatasetError(str(error)) from error
    source = escape(", ".join(map(str, paths)))
    notes = [*mosaics.report[1:], *readable.notes(source)]
    found = _questions(MOSAICS, kept, source, find_images(paths).digest, notes, limit)
    found.images.failed.update(failed)
    return found


def _pixels(mosaics: Mosaics, position: int) -> Tensor:
    return mosaics[position].pixels


def _questions(
    kind: str,
    kept: Sequence[tuple[Question, Item]],
    source: str,
    stamp: str,
    notes: Sequence[str],
    limit: int | None,
) -> Questions:
    if limit is not None and limit < len(kept):
        kept = [kept[i * len(kept) // limit] for i in range(limit)]
    if not kept:
        raise DatasetError(f"{source} has no query that can be measured: {'; '.join(notes)}")
    images = ImageSet([item for _, item in kept], source, stamp, left_out=notes)
    return Questions(kind, [question for question, _ in kept], images, notes)


class _Readable:
    """Which texts a model's tokenizer takes."""

    def __init__(self, model: DoveModel) -> None:
        self.model = model
        self.refused: dict[str, str] = {}

    def __call__(self, text: str) -> bool:
        try:
            queries(text, 1, self.model.config, self.model.tokenizer)
        except QueryError as error:
            self.refused[text] = str(error)
            return False
        return True

    def notes(self, source: str) -> list[str]:
        """A sentence on what was refused."""
        if not self.refused:
            return []
        text, why = next(iter(self.refused.items()))
        return [
            f"{source}: {len(self.refused)} texts left out that the model does not take (the first, "
            f"{text!r}: {why})"
        ]


def things(text: str) -> list[str]:
    """The words of a query or label that name what is asked for."""
    return [word for word in re.findall(r"\w+", text.lower().replace("_", " ")) if word not in _TEMPLATE]


def words_of(paths: Sequence[str | Path]) -> frozenset[str]:
    """All `things` in the labels and queries of labelled pictures, singular and plural.

    Args:
        paths: see `ImageIndex`; of shards the JSON's `label`, `boxes` and `queries` are read.

    Raises:
        DatasetError: naming the path or JSON that cannot be read.
    """
    found: set[str] = set()
    try:
        index = ImageIndex(paths)
        notes = Notes(index)
        for i in range(len(index)):
            note = notes.note(i) or {}
            texts = [notes.label(i)[0], *(box.get("label") for box in note.get("boxes") or ())]
            texts += [query.get("text") for query in note.get("queries") or ()]
            found.update(word for text in texts if text for word in things(str(text)))
    except ImageError as error:
        raise DatasetError(str(error)) from error
    except (AttributeError, TypeError) as error:
        raise DatasetError(
            f"the JSON of {index.name(i)!r} does not hold lists of boxes and queries ({error}); rebuild the "
            "shard"
        ) from error
    return frozenset(found | {plural(word) for word in found})


def is_known(query: str, words: frozenset[str]) -> bool:
    """Whether every thing that a query names is among words, see `words_of`."""
    return all(word in words or plural(word) in words for word in things(query))
