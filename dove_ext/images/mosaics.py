"""Mosaics of labelled pictures: queries with boxes without end, of which every pixel is known to be right.

Boxes that people drew are few, and a label that is missing in a picture may still be seen there. In a mosaic
the query "the dog" has its tile, and the others hold something else.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from dove_ext.errors import ImageError
from dove_ext.images.index import ImageIndex
from dove_ext.images.labels import Notes

Pixels: TypeAlias = npt.NDArray[np.uint8]

Cut: TypeAlias = Callable[[Pixels, int, np.random.Generator], Pixels]
"""A tile of a picture: from uint8 [H, W, 3] and a side to [side, side, 3], by what chance draws from."""

SIDES = (2, 3)  # tiles along a side, each half of the time
_TRIES = 100  # unreadable pictures of a label in a row
_PLURALS = {
    "person": "people", "man": "men", "woman": "women", "child": "children", "foot": "feet",
    "tooth": "teeth", "goose": "geese", "mouse": "mice", "knife": "knives", "wolf": "wolves",
    "leaf": "leaves", "shelf": "shelves",
}  # fmt: skip
_ALIKE = ("sheep", "fish", "deer", "broccoli", "scissors", "glasses", "jeans", "trousers", "clothing")


class Mosaic(NamedTuple):
    """A mosaic with a query about one of its labels.

    Attributes:
        pixels: uint8 [3, size, size].
        query: "the dog", or for several tiles "the dogs" or "all the dogs".
        boxes: float32 [n, 4], the tiles with this label: x0, y0, x1, y1 as fractions.
        names: of the pictures, row by row.
        labels: of the tiles, row by row.
        skipped: pictures that could not be read, and why; others of their labels stand in for them.
        others: queries about the other labels, in random order, with their boxes.
    """

    pixels: Tensor
    query: str
    boxes: Tensor
    names: list[str]
    labels: list[str]
    skipped: dict[str, str]
    others: list[tuple[str, Tensor]]


class Mosaics:
    """Mosaics of 2 x 2 or 3 x 3 pictures; item p, without end, is a function of (seed, p) alone.

    Labels are drawn alike, however many pictures they have, and at least two of them are in a mosaic. Tiles
    are squares of equal size; where the side is no multiple of it, the last row and column of pixels are
    repeated, outside of all boxes.

    Args:
        paths: see `ImageIndex`. A folder of pictures is their label; in shards the JSON's `label` is.
        size: side of a mosaic in pixels.
        seed: not negative.
        cut: how a picture becomes a tile; by default its largest centred square, resized.

    Attributes:
        report: sentences on what there is and what was left out.

    Raises:
        ImageError: if there are fewer than two labels, or paths or notes cannot be read.
    """

    def __init__(self, paths: Sequence[Any], size: int, seed: int, *, cut: Cut | None = None) -> None:
        if seed < 0:
            raise ImageError(f"seed must be at least 0, got {seed}")
        if size < max(SIDES):
            raise ImageError(f"a mosaic must have {max(SIDES)} pixels a side or more, got {size}")
        self.size, self.seed, self.cut = size, seed, cut or centre
        self._pictures: dict[str, list[int]] = {}
        source, unlabelled = ", ".join(map(str, paths)), []
        self.index = ImageIndex(paths)
        notes = Notes(self.index)
        for i in range(len(self.index)):
            label, _ = notes.label(i)
            words = " ".join((label or "").replace("_", " ").lower().split())
            if words:
                self._pictures.setdefault(words, []).append(i)
            else:
                unlabelled.append(i)
        self._labels = sorted(self._pictures)
        if len(self._labels) < 2:
            raise ImageError(
                f"mosaics need pictures of two labels or more, {source} has {len(self._labels)}: give a "
                "folder for each label, or labels in the shards' JSON"
            )
        labelled = len(self.index) - len(unlabelled)
        self.report = [f"{source}: mosaics of {labelled} pictures with {len(self._labels)} labels"]
        if unlabelled:
            first = self.index.name(unlabelled[0])
            self.report.append(
                f"{source}: {len(unlabelled)} pictures left out: no label (the first: {first})"
            )
        self.report += self.index.left_out

    def __getitem__(self, position: int) -> Mosaic:
        """The mosaic at a place of the run.

        Raises:
            ImageError: if 100 pictures of a label in a row cannot be read.
        """
        random = np.random.default_rng((self.seed, 8, position))
        along = int(random.choice(SIDES))
        labels = [str(label) for label in random.choice(self._labels, along * along)]
        if len(set(labels)) == 1:
            others = [label for label in self._labels if label != labels[0]]
            labels[int(random.integers(len(labels)))] = str(random.choice(others))
        side, skipped = self.size // along, dict[str, str]()
        tiles, names = [], []
        for label in labels:
            pixels, name = self._read(label, random, skipped)
            tiles.append(self.cut(pixels, side, random))
            names.append(name)
        rows = [np.concatenate(tiles[i : i + along], axis=1) for i in range(0, len(tiles), along)]
        picture, rest = np.concatenate(rows), self.size - along * side
        picture = np.pad(picture, ((0, rest), (0, rest), (0, 0)), mode="edge")
        asked = str(random.choice(sorted(set(labels))))
        boxes = {name: tiles_of(labels, name, self.size) for name in dict.fromkeys(labels)}
        query = query_for(asked, len(boxes[asked]), random)
        others = [str(name) for name in random.permutation(sorted(set(labels) - {asked}))]
        return Mosaic(
            torch.from_numpy(picture.transpose(2, 0, 1).copy()),
            query,
            boxes[asked],
            names,
            labels,
            skipped,
            [(query_for(name, len(boxes[name]), random), boxes[name]) for name in others],
        )

    def _read(self, label: str, random: np.random.Generator, skipped: dict[str, str]) -> tuple[Pixels, str]:
        """A picture of a label, uint8 [H, W, 3], and its name."""
        for _ in range(_TRIES):
            i = int(random.choice(self._pictures[label]))
            name = self.index.name(i)
            try:
                return np.asarray(self.index.read(i).permute(1, 2, 0).numpy()), name
            except ImageError as error:
                skipped[name] = str(error)
        raise ImageError(
            f"{_TRIES} pictures of the label {label!r} in a row cannot be read; give other pictures "
            f"(the last: {skipped[name]})"
        )


def centre(pixels: Pixels, size: int, random: np.random.Generator) -> Pixels:
    """The largest centred square of a picture, resized: uint8 [H, W, 3] to [size, size, 3]."""
    height, width = pixels.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = Image.fromarray(pixels[top : top + side, left : left + side])
    return np.asarray(square.resize((size, size), Image.Resampling.BICUBIC))


def tiles_of(labels: Sequence[str], label: str, size: int) -> Tensor:
    """Where a label is: float32 [n, 4] of a mosaic of `size` pixels, whose tiles hold `labels` row by row."""
    along = math.isqrt(len(labels))
    share, found = size // along / size, []
    for number in range(len(labels)):
        if labels[number] == label:
            row, column = divmod(number, along)
            found.append((column * share, row * share, (column + 1) * share, (row + 1) * share))
    return torch.tensor(found).view(-1, 4)


def query_for(label: str, count: int, random: np.random.Generator) -> str:
    """The text for so many things: "the dog"; "the dogs" or "all the dogs", each half of the time."""
    if count == 1:
        return f"the {label}"
    return f"{'the' if random.random() < 0.5 else 'all the'} {plural(label)}"


def plural(label: str) -> str:
    """Several of a thing; English has more exceptions than are known here."""
    before, space, word = label.rpartition(" ")
    if word in _ALIKE:
        return label
    if word in _PLURALS:
        return f"{before}{space}{_PLURALS[word]}"
    if word.endswith("y") and word[-2:-1] not in tuple("aeiou"):
        return f"{label[:-1]}ies"
    return label + ("es" if word.endswith(("s", "x", "z", "ch", "sh")) else "s")
