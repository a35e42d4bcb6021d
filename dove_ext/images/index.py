"""A set of pictures: where each of them lies, found once, and its pixels, read one at a time in any order."""

from __future__ import annotations

import copy
import io
import os
import warnings
from array import array
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from PIL import Image
from torch import Tensor

from dove_ext.errors import DoveWarning, ImageError
from dove_ext.images.files import open_stream, read_image, read_stream
from dove_ext.images.find import Found, Search
from dove_ext.images.prepare import Fit, prepare_images
from dove_ext.images.shards import read_member
from dove_ext.images.tables import Columns, is_table, read_picture, read_text


class Location(NamedTuple):
    """Where a picture lies.

    Attributes:
        file: the picture, or the shard that holds it.
        member: its name in the shard, or its key in a parquet file; None for a file.
        root: which of the index's paths it was found in.
        inside: its path within that one, such as "train/cat/1.jpg"; for a file given by name, the name.
        offset: of its first byte in the shard, or its row; 0 for a file.
    """

    file: Path
    member: str | None
    root: int
    inside: str
    offset: int


class _Place(NamedTuple):
    """A folder or shard with pictures."""

    path: str
    root: int
    label: str  # of the root, in front of `inside`; empty, or with a slash at its end
    inside: str  # likewise
    is_shard: bool

    @property
    def is_table(self) -> bool:
        return self.is_shard and is_table(self.path)


class ImageIndex:
    """A list of pictures that holds their places, not their pixels.

    A picture takes 28 bytes and its file name: the 1.3 million of ImageNet, about 65 MB. An index can be
    pickled, and processes that are forked share its memory. `dove_ext.images.find` states what is found in
    a path, and in which order.

    Args:
        paths: folders, pictures, .parquet files and .tar files (WebDataset shards: <key>.jpg beside
            <key>.json).
        synsets: text file with one class a line, of which the first word counts (ImageNet: n01440764). Only
            pictures in a folder of such a name are kept; for those at the top of a shard its name counts.
        on_problem: called with a path and the error where a path, or a folder or shard in one, cannot be
            read or has no pictures; the others are indexed all the same. None: the first one is raised.
        columns: of .parquet files.

    Attributes:
        left_out: sentences about what was left out besides what the rule passes over; each is also given as
            a `DoveWarning`.

    Raises:
        ImageError: without `on_problem`, if a path does not exist, cannot be read, is of another kind, is a
            damaged or compressed tar file, or has no pictures. In any case if `synsets` cannot be read or
            names a class without pictures.
    """

    def __init__(
        self,
        paths: Sequence[str | Path],
        *,
        synsets: Path | None = None,
        on_problem: Callable[[str, ImageError], None] | None = None,
        columns: Columns = Columns(),  # noqa: B008
    ) -> None:
        roots = list(map(Path, paths))
        self._columns = columns
        self._labels = _labels(roots)
        # Flat arrays: a million Python objects would take ten times the room, and every worker process would
        # copy them as soon as it counts a reference.
        self._places: list[_Place] = []
        self._place, self._offset, self._size = array("i"), array("q"), array("q")
        self._names, self._ends = bytearray(), array("q")
        self._faults: dict[int, str] = {}
        search = Search(roots, on_problem or _raise, columns)
        if synsets is None:
            for found in search:
                self._add(found)
        else:
            self._add_classes(search, synsets, ", ".join(map(str, roots)))
        self.left_out = search.left_out
        for sentence in self.left_out:
            warnings.warn(sentence, DoveWarning, stacklevel=2)

    def __len__(self) -> int:
        return len(self._place)

    def name(self, index: int) -> str:
        """The picture's path, or "shard.tar: member"; what errors call it."""
        place, name = self._where(index)
        return f"{place.path}: {name}" if place.is_shard else str(Path(place.path) / name)

    def short_name(self, index: int) -> str:
        """What reports and token files call the picture.

        Its path within the path that was given. If several were given, that path's own name is put in front,
        with as many of its last parts as tell it apart from the others: "a/1.png" and "b/1.png".
        """
        place, name = self._where(index)
        return place.label + place.inside + name

    def locate(self, index: int) -> Location:
        """Where the picture lies."""
        place, name = self._where(index)
        file, member = Path(place.path), name if place.is_shard else None
        inside, offset = place.inside + name, self._offset[index]
        return Location(file if place.is_shard else file / name, member, place.root, inside, offset)

    def read(self, index: int) -> Tensor:
        """The picture's pixels as 8-bit RGB, by the rules of `dove_ext.images.read_image`.

        Returns:
            Tensor: uint8 [3, H, W].

        Raises:
            ImageError: naming the picture, if it has vanished, is no picture or is damaged.
        """
        place, name = self._where(index)
        if not place.is_shard:
            return read_image(Path(place.path) / name)
        return read_stream(io.BytesIO(self.data(index)), repr(self.name(index)))

    def data(self, index: int) -> bytes:
        """The picture's file as it is.

        Raises:
            ImageError: naming the picture, if it has vanished or cannot be read.
        """
        place, name = self._where(index)
        title = repr(self.name(index))
        if index in self._faults:
            raise ImageError(f"{title} {self._faults[index]}")
        if place.is_table:
            return read_picture(Path(place.path), self._offset[index], self._columns.image, title)
        if place.is_shard:
            return read_member(Path(place.path), name, self._offset[index], self._size[index])
        try:
            return (Path(place.path) / name).read_bytes()
        except OSError as error:
            raise ImageError(f"{title} cannot be read: {error.strerror}") from error

    def text(self, index: int, column: str) -> str | None:
        """What a column of the picture's parquet file says beside it; None where it says nothing.

        Raises:
            ImageError: if the picture lies in no parquet file, or that has no such texts.
        """
        place, _ = self._where(index)
        if not place.is_table:
            raise ImageError(f"{self.name(index)!r} lies in no parquet file, so it has no column {column!r}")
        return read_text(Path(place.path), self._offset[index], column)

    def image(self, index: int) -> str | Image.Image:
        """The picture as `encode` takes it, not read yet: its path, or of a shard's member a PIL image.

        Raises:
            ImageError: naming the picture, if it has vanished, or is no picture.
        """
        place, name = self._where(index)
        if not place.is_shard:
            return str(Path(place.path) / name)
        return open_stream(io.BytesIO(self.data(index)), repr(self.name(index)))

    def prepare(self, index: int, size: int, *, fit: Fit = "crop") -> Tensor:
        """The picture as a model takes it: `prepare_images` of its pixels.

        Returns:
            Tensor: float32 [1, 3, size, size] in [-1, 1].

        Raises:
            ImageError: naming the picture, if it cannot be read, or is too long for `fit`.
        """
        pixels = self.read(index)
        try:
            return prepare_images(pixels, size, fit=fit)
        except ImageError as error:  # it knows the pixels only
            raise ImageError(str(error).replace("the tensor", repr(self.name(index)), 1)) from error

    def refuse(self, index: int, why: str) -> None:
        """Let a picture in a shard be one that cannot be read; `why` goes on behind its name."""
        self._faults[index] = why

    def part(self, start: int, stop: int) -> ImageIndex:
        """The pictures from `start` to before `stop` as an index of their own, under the same names."""
        part = copy.copy(self)
        places, first = self._place[start:stop], self._ends[start - 1] if start else 0
        part._ends = array("q", (end - first for end in self._ends[start:stop]))
        part._names = self._names[first : first + (part._ends[-1] if part._ends else 0)]
        part._offset, part._size = self._offset[start:stop], self._size[start:stop]
        low, high = (places[0], places[-1] + 1) if places else (0, 0)
        part._places, part._place = self._places[low:high], array("i", (place - low for place in places))
        part._faults = {i - start: why for i, why in self._faults.items() if start <= i < stop}
        return part

    def sizes(self, start: int, stop: int) -> list[tuple[int, int]]:
        """Of shards' members the first byte and the size; of rows their number and 0; of files twice 0."""
        return list(zip(self._offset[start:stop], self._size[start:stop], strict=True))

    def places(self) -> list[str]:
        """The folders and shards that the pictures lie in."""
        return [place.path for place in self._places]

    def spread(self, limit: int) -> list[int]:
        """At most `limit` (from 1) indices, evenly spread."""
        count = min(limit, len(self))
        return [i * len(self) // count for i in range(count)]

    def _where(self, index: int) -> tuple[_Place, str]:
        if index < 0:
            index += len(self)
        start = self._ends[index - 1] if index else 0
        return self._places[self._place[index]], os.fsdecode(bytes(self._names[start : self._ends[index]]))

    def _add(self, found: Found) -> None:
        if not self._places or self._places[-1].path != found.place or self._places[-1].root != found.root:
            label = self._labels[found.root]
            if found.by_name:  # the label ends with the picture's own name
                label = label.rpartition("/")[0]
            label += "/" if label else ""
            inside = found.inside
            if self._columns.key is not None and found.in_shard and is_table(found.place):
                label = inside = ""  # a key is the whole name
            self._places.append(_Place(found.place, found.root, label, inside, found.in_shard))
        if found.fault:
            self._faults[len(self._place)] = found.fault
        self._place.append(len(self._places) - 1)
        self._offset.append(found.offset)
        self._size.append(found.size)
        self._names += os.fsencode(found.name)
        self._ends.append(len(self._names))

    def _add_classes(self, search: Search, synsets: Path, where: str) -> None:
        wanted, kept = _read_synsets(synsets), set()
        place, folder = "", ""
        for found in search:
            if found.place != place:
                place, folder = found.place, Path(found.place).absolute().name
            parent = folder
            if found.in_shard:
                parent = found.name.rpartition("/")[0].rpartition("/")[2].strip(".") or Path(place).stem
            if parent in wanted:
                kept.add(parent)
                self._add(found)
        for name in sorted(wanted - kept):
            raise ImageError(f"the class {name!r} of {str(synsets)!r} has no images in {where}; check both")


def _labels(roots: list[Path]) -> list[str]:
    """As many of the last parts of each path as tell it apart from the others; nothing for a lone one."""
    parts = [Path(os.path.normpath(root.absolute())).parts for root in roots]
    if len(set(parts)) < 2:
        return [""] * len(roots)
    count, longest = 1, max(map(len, parts))
    while count < longest and len({part[-count:] for part in parts}) < len(set(parts)):
        count += 1
    return ["/".join(part[-count:]).lstrip("/") for part in parts]


def _raise(path: str, error: ImageError) -> None:
    raise error


def _read_synsets(path: Path) -> set[str]:
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise ImageError(f"the class list {str(path)!r} cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise ImageError(f"the class list {str(path)!r} is not text; write one class a line") from error
    names = {line.split()[0] for line in lines if line.strip()}
    if not names:
        raise ImageError(f"the class list {str(path)!r} is empty; write one class a line, such as n01440764")
    return names
