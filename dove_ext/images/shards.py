"""Tar files as shards of pictures: members are found from the headers and read by their place in the file."""

from __future__ import annotations

import posixpath
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

from dove_ext.errors import ImageError

COMPRESSED_TARS = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst")
_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ\0": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
_CHUNK = 2048 * tarfile.BLOCKSIZE


class Member(NamedTuple):
    """One file in a shard.

    Attributes:
        name: as the shard spells it.
        offset: of its first byte in the shard.
        size: in bytes.
        fault: why its bytes cannot be read; empty if they can.
    """

    name: str
    offset: int
    size: int
    fault: str = ""


def list_members(shard: Path) -> Iterator[Member]:
    """The files in an uncompressed tar file, without reading them.

    Tar files joined end to end (`cat a.tar b.tar`, `tar --concatenate`) are read to the last. A hard or
    symbolic link to a file in the shard has that file's bytes; links come behind all files, and one whose
    target is not in the shard has a `fault`, as has a sparse file.

    Raises:
        ImageError: naming the shard, if it cannot be read, is compressed, is no tar file or is damaged.
    """
    links = []
    for member in _headers(shard):
        if member.isreg():
            yield _place(member)
        elif member.islnk() or member.issym():
            links.append(member)
    if links:  # seldom, so the names of all files are not kept for it
        yield from _resolve(shard, {_target(link) for link in links})


def read_member(shard: Path, name: str, offset: int, size: int) -> bytes:
    """The bytes of one file in a shard.

    Raises:
        ImageError: naming shard and file, if the shard cannot be read.
    """
    try:
        with shard.open("rb") as stream:
            stream.seek(offset)
            return stream.read(size)
    except OSError as error:
        raise ImageError(f"{f'{shard}: {name}'!r} cannot be read: {error.strerror or error}") from error


def _place(member: tarfile.TarInfo) -> Member:
    fault = "has holes (a sparse file); rebuild the shard without --sparse" if member.issparse() else ""
    return Member(member.name, member.offset_data, member.size, fault)


def _target(link: tarfile.TarInfo) -> str:
    """A hard link names its target from the top of the shard, a symbolic one from its own folder."""
    folder = posixpath.dirname(link.name) if link.issym() else ""
    return posixpath.normpath(posixpath.join(folder, link.linkname))


def _resolve(shard: Path, targets: set[str]) -> Iterator[Member]:
    """The links of a shard, each with the place of the last file of its target's name in front of it."""
    places: dict[str, Member] = {}
    waiting: list[tuple[str, str]] = []  # symbolic links may lead to what comes later

    def settle(name: str, target: str) -> Member | None:
        found = places.get(target)
        if found is not None:
            found = places[posixpath.normpath(name)] = found._replace(name=name)
        return found

    for member in _headers(shard):
        if member.isreg():
            if (name := posixpath.normpath(member.name)) in targets:
                places[name] = _place(member)
        elif member.islnk() or member.issym():
            if (link := settle(member.name, _target(member))) is not None:
                yield link
            else:
                waiting.append((member.name, _target(member)))
    while waiting:
        rest = []
        for name, target in waiting:
            if (link := settle(name, target)) is not None:
                yield link
            else:
                rest.append((name, target))
        if len(rest) == len(waiting):
            break
        waiting = rest
    for name, target in waiting:
        yield Member(name, 0, 0, f"is a link to {target!r}, which the shard does not hold; rebuild the shard")


def _headers(shard: Path) -> Iterator[tarfile.TarInfo]:
    """Every header of every archive in a tar file."""
    name, last = repr(str(shard)), "its start"
    try:
        with shard.open("rb") as stream:
            _refuse_compressed(stream, name)
            start: int | None = 0
            while start is not None:
                stream.seek(start)
                with tarfile.open(fileobj=stream, mode="r:") as archive:
                    while (member := archive.next()) is not None:
                        archive.members = []  # type: ignore[attr-defined] # or it would keep every header
                        last = repr(member.name)
                        yield member
                end = archive.offset
                start = _behind_zeros(stream, end)
                if start == end:  # tarfile takes a torn header for the end
                    raise ImageError(f"{name} is a damaged tar file (after {last}); get a whole copy of it")
    except ImageError:
        raise
    except OSError as error:
        raise ImageError(f"{name} cannot be read: {error.strerror or error}; check the path") from error
    except Exception as error:  # besides TarError, damaged headers raise ValueError and its like
        raise ImageError(
            f"{name} is not a tar file or is damaged ({error}); get a whole copy of it"
        ) from error


def _refuse_compressed(stream: BinaryIO, name: str) -> None:
    head = stream.read(max(map(len, _COMPRESSED)))
    for magic, kind in _COMPRESSED.items():
        if head.startswith(magic):
            raise ImageError(
                f"{name} is compressed ({kind}), so its images cannot be read in any order; "
                "unpack it to a plain .tar"
            )


def _behind_zeros(stream: BinaryIO, start: int) -> int | None:
    """The next block from `start` that is not all zeros: where another archive was joined on."""
    stream.seek(start)
    while chunk := stream.read(_CHUNK):
        zeros = len(chunk) - len(chunk.lstrip(b"\0"))
        if zeros < len(chunk):
            return start + zeros // tarfile.BLOCKSIZE * tarfile.BLOCKSIZE
        start += len(chunk)
    return None
