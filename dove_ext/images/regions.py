"""Queries about pictures with the boxes of what they ask for (2.3): what every reader of such data makes.

`read_shards` reads tar shards; training has readers of further layouts.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dove_ext.errors import ImageError
from dove_ext.images.index import ImageIndex
from dove_ext.images.labels import Notes

Box = Sequence[float]
WHOLE = (0.0, 0.0, 1.0, 1.0)


class Region(NamedTuple):
    """A query about a picture.

    Attributes:
        name: the picture's path, or "shard.tar: member".
        open: reads it, uint8 [3, H, W]; ImageError if it cannot be read.
        query: a text; None: the whole picture is asked for ("null"), and its box is 0, 0, 1, 1.
        boxes: float32 [n, 4], n at least 1: x0, y0, x1, y1 of what is asked for, as fractions of the picture.
    """

    name: str
    open: Callable[[], Tensor]
    query: str | None
    boxes: Tensor


class Regions(Sequence[Region]):
    """Queries in a fixed order; texts and boxes lie in flat arrays, some 70 bytes a query.

    Visual Genome and Open Images have ten million of them: as Python objects they would not fit.

    Args:
        pictures: found and numbered.
        source: where the queries come from, for people.
    """

    def __init__(self, pictures: ImageIndex, source: str) -> None:
        self.pictures, self.source = pictures, source
        self._picture, self._text_end, self._box_end = array("i"), array("q"), array("q")
        self._text, self._box = bytearray(), array("f")
        self._counts: dict[str, tuple[int, str]] = {}

    def __len__(self) -> int:
        return len(self._picture)

    def __getitem__(self, i: Any) -> Any:
        if isinstance(i, slice):
            return [self[k] for k in range(*i.indices(len(self)))]
        if not -len(self) <= i < len(self):
            raise IndexError(f"there is no query {i}, there are {len(self)}")
        i %= len(self)
        first_text, first_box = (self._text_end[i - 1], self._box_end[i - 1]) if i else (0, 0)
        text = bytes(self._text[first_text : self._text_end[i]]).decode("utf-8")
        boxes = torch.tensor(self._box[first_box : self._box_end[i]]).view(-1, 4)
        picture = self._picture[i]
        return Region(self.pictures.name(picture), partial(self.pictures.read, picture), text or None, boxes)

    def beside(self, i: int) -> list[int]:
        """The places of the other queries about the same picture that stand around query i."""
        first = last = i
        while first and self._picture[first - 1] == self._picture[i]:
            first -= 1
        while last + 1 < len(self) and self._picture[last + 1] == self._picture[i]:
            last += 1
        return [k for k in range(first, last + 1) if k != i]

    def add(self, picture: int, query: str | None, boxes: Sequence[Box], example: str) -> None:
        """Add a query; one that has no text, or no box within its picture, is counted instead.

        Args:
            picture: its place in the index.
            query: None: the whole picture, whatever the boxes.
            boxes: fractions, cut to the picture here; the same box counts once.
            example: what people call this query.
        """
        text = None if query is None else " ".join(query.split())
        if text == "":
            self.leave_out("left out: no text", example)
            return
        distinct = dict.fromkeys([WHOLE] if text is None else map(_cut, boxes))
        if None in distinct:
            self.leave_out("boxes left out: no area within the picture", example)
        kept = [box for box in distinct if box is not None]
        if not kept:
            self.leave_out("left out: no box within the picture", example)
            return
        self._picture.append(picture)
        self._text += (text or "").encode("utf-8", "replace")
        self._text_end.append(len(self._text))
        for box in kept:
            self._box.extend(box)
        self._box_end.append(len(self._box))

    def leave_out(self, what: str, example: str) -> None:
        """Count what was left out or changed; `report` says how often, and the first example."""
        number, first = self._counts.get(what, (0, example))
        self._counts[what] = number + 1, first

    def report(self) -> list[str]:
        """One sentence on what there is, and one on each kind of thing that was left out or changed."""
        lines = [f"{len(self)} queries about {len(set(self._picture))} pictures", *self._left_out()]
        return [*(f"{self.source}: {line}" for line in lines), *self.pictures.left_out]

    def _left_out(self) -> list[str]:
        return [f"{number} {what} (the first: {first})" for what, (number, first) in self._counts.items()]

    def why_empty(self) -> str:
        """Of none at all: what was left out, for a sentence that refuses them."""
        return "; ".join(self._left_out()) or "its files are empty"


def _cut(box: Box) -> tuple[float, ...] | None:
    """A box within 0..1; None if nothing is left of it."""
    if not all(math.isfinite(edge) for edge in box):
        return None
    x0, y0, x1, y1 = (min(1.0, max(0.0, float(edge))) for edge in box)
    return (x0, y0, x1, y1) if x0 < x1 and y0 < y1 else None


def read_shards(paths: Sequence[Path]) -> Regions:
    """Tar shards whose JSON holds boxes and queries.

    Beside `<key>.jpg` lies `<key>.json` with `boxes`, a list of {x0, y0, x1, y1} in fractions of the picture,
    and `queries`, a list of {text, boxes}, whose boxes are places in the other list. Pictures without queries
    are counted.

    Args:
        paths: see `ImageIndex`.

    Raises:
        ImageError: naming the path, shard or JSON, and what is wrong with it.
    """
    index = ImageIndex(paths)
    regions, notes = Regions(index, ", ".join(map(str, paths))), Notes(index)
    for picture in range(len(index)):
        name = index.name(picture)
        note = notes.note(picture)
        if note is None or not note.get("queries"):
            missing = "JSON" if note is None else "queries in its JSON"
            regions.leave_out(f"pictures left out: no {missing}", name)
            continue
        for text, boxes in _queries(note, name):
            regions.add(picture, text, boxes, f"{text!r} of {name}")
    return regions


def _queries(note: dict[str, Any], name: str) -> list[tuple[str, list[Box]]]:
    try:
        edges = ("x0", "y0", "x1", "y1")
        boxes: list[Box] = [tuple(float(box[edge]) for edge in edges) for box in note["boxes"]]
        queries: list[tuple[str, list[Box]]] = []
        for query in note["queries"]:
            text, places = query["text"], query["boxes"]
            if not isinstance(text, str) or not all(0 <= int(place) < len(boxes) for place in places):
                raise ValueError(f"the query {text!r} of boxes {places}, there are {len(boxes)}")
            queries.append((text, [boxes[int(place)] for place in places]))
        return queries
    except (KeyError, TypeError, ValueError) as error:
        raise ImageError(
            f"the JSON of {name!r} does not hold boxes {{x0, y0, x1, y1}} and queries {{text, boxes}} "
            f"({type(error).__name__}: {error}); rebuild the shard"
        ) from error


def pixel_box(box: Sequence[float], size: int) -> tuple[int, int, int, int]:
    """The pixels of a box, left, top, right and bottom, the last two behind its last pixel.

    Edges are rounded to whole pixels. A box that would hold none is widened to the pixel of its centre.

    Args:
        box: x0, y0, x1, y1 with 0 <= x0 <= x1 <= 1, likewise y.
        size: side of the image in pixels.

    Raises:
        ValueError: if the box is none of the image's.
    """
    x0, y0, x1, y1 = map(float, box)
    if not (0 <= x0 <= x1 <= 1 and 0 <= y0 <= y1 <= 1):
        raise ValueError(f"a box must be fractions x0 <= x1, y0 <= y1 in 0..1, got {[x0, y0, x1, y1]}")
    (left, right), (top, bottom) = _pixels(x0, x1, size), _pixels(y0, y1, size)
    return left, top, right, bottom


def _pixels(start: float, end: float, size: int) -> tuple[int, int]:
    first, behind = math.floor(start * size + 0.5), math.floor(end * size + 0.5)
    if behind > first:
        return first, behind
    centre = min(int((start + end) / 2 * size), size - 1)
    return centre, centre + 1


def box_mask(boxes: Tensor, size: int) -> Tensor:
    """The pixels of all boxes together: float32 [size, size], 1 inside and 0 outside.

    Args:
        boxes: [n, 4], as `Region.boxes`.
        size: side of the image in pixels.
    """
    mask = torch.zeros(size, size)
    for box in boxes.tolist():
        left, top, right, bottom = pixel_box(box, size)
        mask[top:bottom, left:right] = 1
    return mask
