"""Where every training image lies: in folders, tar shards or files, found once and read one at a time."""

from __future__ import annotations

import io
import os
import tarfile
from array import array
from collections.abc import Iterator
from pathlib import Path

from torch import Tensor

from dove_ext.errors import ImageError
from dove_ext.images.files import IMAGE_SUFFIXES, read_image, read_stream

_SUFFIXES = tuple(IMAGE_SUFFIXES)
_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ\0": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
_COMPRESSED_SUFFIXES = (".gz", ".tgz", ".bz2", ".tbz2", ".xz", ".txz", ".zst")
_REMEDY = "give image folders, tar shards or pictures"


class ImageIndex:
    """A list of images that holds their places, not their pixels.

    An image takes 28 bytes and its file name: the 1.3 million images of ImageNet, about 65 MB. The order is
    that of the paths, and by name within each.

    Args:
        paths: any of

            - a folder: the pictures in it at any depth, through symbolic links, told by their suffixes;
              if it has none, the .tar files in it, which are taken for shards;
            - an uncompressed .tar file (a WebDataset shard: <key>.jpg beside <key>.json): its pictures.
              Headers are read now, pixels later, from their offset;
            - a picture.

            What is named with a leading dot is left out.
        synsets: text file with one class a line, of which the first word counts (ImageNet: n01440764). Only
            images in a folder of such a name are kept; for images at the top of a shard its name counts.
        purpose: what to ask for in the message that there are no pictures.

    Raises:
        ImageError: if a path does not exist, is of another kind, is a damaged or compressed tar file, or
            there are no pictures; if `synsets` cannot be read or names a class without images.
    """

    def __init__(
        self, paths: list[Path], *, synsets: Path | None = None, purpose: str = "training data"
    ) -> None:
        # Flat arrays: a million Python objects would take ten times the room, and every worker process would
        # copy them as soon as it counts a reference.
        self._places: list[str] = []  # folders and shards
        self._place, self._offset, self._size = array("i"), array("q"), array("q")
        self._names, self._ends = bytearray(), array("q")
        self._wanted = None if synsets is None else _read_synsets(synsets)
        self._found: set[str] = set()
        for path in map(Path, paths):
            self._add_path(path)
        where = ", ".join(map(str, paths))
        for name in sorted((self._wanted or set()) - self._found):
            raise ImageError(f"the class {name!r} of {str(synsets)!r} has no images in {where}; check both")
        if not self._place:
            raise ImageError(f"there are no pictures in {where}; give other {purpose}")

    def __len__(self) -> int:
        return len(self._place)

    def name(self, index: int) -> str:
        """The image's path, or "shard.tar: member"."""
        place, member = self._where(index)
        return str(Path(place) / member) if self._offset[index] < 0 else f"{place}: {member}"

    def read(self, index: int) -> Tensor:
        """The image's pixels as 8-bit RGB, by the rules of `dove_ext.images.read_image`.

        Returns:
            Tensor: uint8 [3, H, W].

        Raises:
            ImageError: naming the image, if it has vanished, is no picture or is damaged.
        """
        place, member = self._where(index)
        if self._offset[index] < 0:
            return read_image(Path(place) / member)
        name = repr(self.name(index))
        try:
            with Path(place).open("rb") as shard:
                shard.seek(self._offset[index])
                data = shard.read(self._size[index])
        except OSError as error:
            raise ImageError(f"{name} cannot be read: {error.strerror or error}") from error
        return read_stream(io.BytesIO(data), name)

    def spread(self, limit: int) -> list[int]:
        """At most `limit` (from 1) indices, evenly spread."""
        count = min(limit, len(self))
        return [i * len(self) // count for i in range(count)]

    def _where(self, index: int) -> tuple[str, str]:
        start = self._ends[index - 1] if index else 0
        return self._places[self._place[index]], os.fsdecode(bytes(self._names[start : self._ends[index]]))

    def _add(self, place: str, name: str, parent: str, offset: int = -1, size: int = 0) -> None:
        if self._wanted is not None:
            if parent not in self._wanted:
                return
            self._found.add(parent)
        if not self._places or self._places[-1] != place:
            self._places.append(place)
        self._place.append(len(self._places) - 1)
        self._offset.append(offset)
        self._size.append(size)
        self._names += os.fsencode(name)
        self._ends.append(len(self._names))

    def _add_path(self, path: Path) -> None:
        try:
            if path.is_dir():
                shards: list[Path] = []
                if not self._add_folder(path, frozenset(), shards):
                    for shard in shards:
                        self._add_shard(shard)
                return
            if not path.exists():
                raise ImageError(f"{str(path)!r} does not exist; {_REMEDY}")
        except OSError as error:
            name = str(error.filename or path)  # it may be a folder further down
            raise ImageError(f"{name!r} cannot be read: {error.strerror or error}; {_REMEDY}") from error
        name = path.name.lower()
        if name.endswith(".tar") or name.endswith(_COMPRESSED_SUFFIXES):
            self._add_shard(path)
            return
        if not name.endswith(_SUFFIXES):
            read_image(path)  # it may be a picture all the same
        self._add(str(path.parent), path.name, path.absolute().parent.name)

    def _add_folder(self, folder: Path, above: frozenset[tuple[int, int]], shards: list[Path]) -> bool:
        """Add the pictures below a folder; returns whether there are any, and the shards in `shards`."""
        status = folder.stat()
        here = (status.st_dev, status.st_ino)
        if here in above:  # a link that leads back up
            return False
        with os.scandir(folder) as entries:
            listing = sorted((entry.name, entry.is_dir()) for entry in entries if entry.name[0] != ".")
        place, parent, any_pictures = str(folder), folder.absolute().name, False
        for name, is_folder in listing:
            if is_folder:
                any_pictures |= self._add_folder(folder / name, above | {here}, shards)
            elif _is_picture(name):
                self._add(place, name, parent)
                any_pictures = True
            elif name.lower().endswith(".tar"):
                shards.append(folder / name)
        return any_pictures

    def _add_shard(self, path: Path) -> None:
        for name, offset, size in _tar_pictures(path):
            parent = name.rpartition("/")[0].rpartition("/")[2].strip(".")
            self._add(str(path), name, parent or path.stem, offset, size)


def _tar_pictures(path: Path) -> Iterator[tuple[str, int, int]]:
    """Name, offset and size of each picture in a tar file."""
    name, last = repr(str(path)), "its start"
    try:
        with path.open("rb") as stream:
            head = stream.read(max(map(len, _COMPRESSED)))
            for magic, kind in _COMPRESSED.items():
                if head.startswith(magic):
                    raise ImageError(
                        f"{name} is compressed ({kind}), so its images cannot be read in any order; "
                        "unpack it to a plain .tar"
                    )
            stream.seek(0)
            with tarfile.open(fileobj=stream, mode="r:") as shard:
                while (member := shard.next()) is not None:
                    shard.members = []  # type: ignore[attr-defined] # or it would keep every header
                    last = repr(member.name)
                    if not (member.isreg() and _is_picture(member.name.rpartition("/")[2])):
                        continue
                    if member.issparse():
                        raise ImageError(f"{name} has holes in {last}; rebuild it without --sparse")
                    yield member.name, member.offset_data, member.size
                stream.seek(shard.offset)
                if stream.read(tarfile.BLOCKSIZE).strip(b"\0"):  # tarfile takes a torn header for the end
                    raise ImageError(f"{name} is a damaged tar file (after {last}); get a whole copy of it")
    except ImageError:
        raise
    except OSError as error:
        raise ImageError(f"{name} cannot be read: {error.strerror or error}; {_REMEDY}") from error
    except Exception as error:  # besides TarError, damaged headers raise ValueError and its like
        raise ImageError(f"{name} is not a tar file or is damaged ({error}); {_REMEDY}") from error


def _is_picture(name: str) -> bool:
    return name[:1] != "." and name.lower().endswith(_SUFFIXES)


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
