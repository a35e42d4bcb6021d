"""Training samples that ask for something (Q-DOVE, 2.3), in endless random order as in `data`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Dataset

from dove_ext.errors import ImageError, QueryError
from dove_ext.images.regions import WHOLE, Region, Regions
from dove_ext.models.query import Query
from dove_ext.models.text import QueryTokenizer
from dove_train.augment import Augmentation
from dove_train.data import PATIENCE, Batch, Sample
from dove_train.mosaics import Mosaics
from dove_train.open_images import read_open_images
from dove_train.regions import read_shards
from dove_train.settings import TrainingError
from dove_train.visual_genome import read_visual_genome

NULL_SHARE = 0.5  # of the queries, which become "null" (3.1)
_READERS = {"visual-genome:": read_visual_genome, "open-images:": read_open_images}
# A mirrored picture does not fit such a text any more.
_SIDES = re.compile(r"\b(left|right)", re.IGNORECASE)


def _parted(paths: Sequence[str]) -> list[tuple[str, Path]]:
    """The prefix of each path, empty for shards, and what stands behind it."""
    prefixes = [next((p for p in _READERS if path.startswith(p)), "") for path in paths]
    return [(prefix, Path(path[len(prefix) :])) for prefix, path in zip(prefixes, paths, strict=True)]


def read_queries(paths: Sequence[str]) -> list[Regions]:
    """Queries with boxes: `visual-genome:FOLDER`, `open-images:FOLDER`; all other paths are shards.

    Raises:
        TrainingError: as the readers do.
    """
    parted = _parted(paths)
    shards = [path for prefix, path in parted if not prefix]
    found = [_READERS[prefix](path) for prefix, path in parted if prefix]
    return [*found, read_shards(shards)] if shards else found


def folders(paths: Sequence[str]) -> list[Path]:
    """The paths without prefixes."""
    return [path for _, path in _parted(paths)]


class QueryIndex:
    """Queries of several readers with one number each, and behind them the pictures of mosaics.

    Args:
        regions: what the readers made.
        mosaics: None: there are none.
    """

    def __init__(self, regions: Sequence[Regions], mosaics: Mosaics | None) -> None:
        self.regions, self.mosaics = list(regions), mosaics
        self.queries = sum(map(len, self.regions))

    def __len__(self) -> int:
        return self.queries + (len(self.mosaics.index) if self.mosaics else 0)

    def __getitem__(self, i: int) -> Region:
        """A query."""
        for part in self.regions:
            if i < len(part):
                region: Region = part[i]
                return region
            i -= len(part)
        raise IndexError("there is no such query")

    def beside(self, i: int) -> list[Region]:
        """The other queries about the same picture."""
        for part in self.regions:
            if i < len(part):
                return [part[k] for k in part.beside(i)]
            i -= len(part)
        raise IndexError("there is no such query")

    def name(self, i: int) -> str:
        """The picture, and what is asked about it."""
        if i >= self.queries and self.mosaics:
            return self.mosaics.index.name(i - self.queries)
        region = self[i]
        return f"{region.name}: {region.query} {region.boxes.tolist()}"

    def read(self, i: int) -> Tensor:
        """The picture, uint8 [3, H, W]; ImageError if it cannot be read."""
        if i >= self.queries and self.mosaics:
            return self.mosaics.index.read(i - self.queries)
        return self[i].open()

    def spread(self, limit: int) -> list[int]:
        """At most `limit` numbers, evenly spread."""
        count = min(limit, len(self))
        return [i * len(self) // count for i in range(count)]


class QueryImages(Dataset[Sample]):
    """Pictures with queries and boxes; item p is a function of (seed, p) alone.

    An epoch holds every query once, in an order of its own. A share of the queries, half in the paper, become
    "null" with the whole picture as their box (3.1), and are augmented as images without queries are. The
    other pictures are squashed to a square, since a square cut out of them could lose what is asked for; of
    each side at least `crop_scale` is kept, and more than half of every box. They are mirrored unless a text
    speaks of left or right, and never made grey: a text may name a colour.

    Args:
        regions: what is asked.
        size: side of the samples in pixels.
        seed: not negative.
        augmentation: what is done to each picture.
        mosaics: drawn instead of a query's picture for a share of the samples, see `Mosaics`.
        mosaic_share: this share.
        null_share: of the queries, which become "null".
        more: up to so many further queries about each picture that is asked about, drawn from the others.

    Raises:
        TrainingError: if there is nothing to ask.
    """

    def __init__(
        self,
        regions: Sequence[Regions],
        size: int,
        seed: int,
        *,
        augmentation: Augmentation,
        mosaics: Mosaics | None = None,
        mosaic_share: float = 0.0,
        null_share: float = NULL_SHARE,
        more: int = 0,
    ) -> None:
        if seed < 0:
            raise TrainingError(f"seed must be at least 0, got {seed}")
        self.size, self.seed, self.augmentation = size, seed, augmentation
        self.mosaics, self.mosaic_share = mosaics, mosaic_share
        self.null_share, self.more = null_share, more
        self.index = QueryIndex(regions, mosaics)
        self.report = [line for part in regions for line in part.report()]
        self.report += mosaics.report if mosaics else []
        self._order: tuple[int, npt.NDArray[np.int64]] | None = None
        if not len(self) and (mosaics is None or mosaic_share < 1):
            raise TrainingError("there are no queries: give --queries, or mosaics: 1 and labelled --data")

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_order": None}

    def __len__(self) -> int:
        """Queries, which is the number of positions in an epoch."""
        return self.index.queries

    def __getitem__(self, position: int) -> Sample:
        """The sample at a position.

        Raises:
            TrainingError: if no picture can be read, or 10,000 in a row cannot.
        """
        random = np.random.default_rng((self.seed, 9, position))
        null, mosaic = random.random() < self.null_share, random.random() < self.mosaic_share
        whole = torch.tensor([WHOLE])
        if mosaic and self.mosaics:
            made = self.mosaics[position]
            name = f"mosaic {position}"
            query, boxes = (None, whole) if null else (made.query, made.boxes)
            more = [] if null else made.others[: self.more]
            return Sample(made.pixels, name, made.skipped, query, boxes, more)
        epoch, start = divmod(position, len(self))
        if self._order is None or self._order[0] != epoch:
            self._order = epoch, np.random.default_rng((self.seed, 10, epoch)).permutation(len(self))
        skipped: dict[str, str] = {}
        for k in range(min(len(self), PATIENCE)):
            number = int(self._order[1][(start + k) % len(self)])
            region = self.index[number]
            try:
                pixels = region.open().permute(1, 2, 0).numpy()
            except ImageError as error:
                skipped[region.name] = str(error)
                continue
            further: list[tuple[str, Tensor]] = []
            if null or region.query is None:
                out, query, boxes = self.augmentation(pixels, self.size, random), None, whole
            else:
                query, more = region.query, self._more(number, random)
                mirror = not any(_SIDES.search(text) for text in (query, *(text for text, _ in more)))
                places = [region.boxes, *(boxes for _, boxes in more)]
                out, boxes = self.augmentation.squashed(pixels, torch.cat(places), self.size, random, mirror)
                boxes, *others = boxes.split([len(part) for part in places])
                further = [(text, part) for (text, _), part in zip(more, others, strict=True)]
            picture = torch.from_numpy(out.transpose(2, 0, 1).copy())
            return Sample(picture, region.name, skipped, query, boxes, further)
        raise TrainingError(
            f"the pictures of {min(len(self), PATIENCE)} queries in a row cannot be read; give other "
            f"training data (the last: {list(skipped.values())[-1]})"
        )

    def _more(self, number: int, random: np.random.Generator) -> list[tuple[str, Tensor]]:
        """Further queries about the picture of a query, and their boxes."""
        if not self.more:
            return []
        others = self.index.beside(number)
        chosen = random.permutation(len(others))[: self.more]
        return [(text, others[i].boxes) for i in chosen if (text := others[i].query) is not None]


def understood(tokenizer: QueryTokenizer, batch: Batch) -> tuple[Query, list[Tensor], dict[str, str]]:
    """What a model reads of a batch's queries, on the CPU, and the boxes that belong to it.

    A text that the tokenizer refuses, such as one that is too long, is trained as "null".

    Returns:
        (Query, list, dict): the queries, float32 [n, 4] for each image, and what was refused with its reason.
    """
    assert batch.boxes is not None
    texts, boxes, refused = list(batch.queries), list(batch.boxes), dict[str, str]()
    for i, text in enumerate(texts):
        try:
            tokenizer([text])
        except QueryError as error:
            texts[i], boxes[i] = None, torch.tensor([WHOLE])
            refused[f"{batch.names[i]}: {text}"] = (
                f'{text!r} about {batch.names[i]!r} becomes "null": {error}'
            )
    return tokenizer(texts), boxes, refused


def every_query(batch: Batch) -> tuple[Batch, list[int]]:
    """A batch with a row for every query about its images, and which image a row is about.

    Its pixels stay those of the images.
    """
    assert batch.boxes is not None
    owners, texts, boxes = list(range(len(batch.names))), list(batch.queries), list(batch.boxes)
    for i, further in enumerate(batch.more):
        for text, own in further:
            owners.append(i)
            texts.append(text)
            boxes.append(own)
    return replace(batch, names=[batch.names[i] for i in owners], queries=texts, boxes=boxes, more=[]), owners
