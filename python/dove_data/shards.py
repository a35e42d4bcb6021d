"""One shard: its bytes, with what it is and a checksum inside, and whether a file is one that is whole."""

from __future__ import annotations

import io
import json
import mmap
import re
import tarfile
from dataclasses import fields
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple

from dove_data.settings import WEBDATASET, DataError
from dove_ext.tokens import DoveTokens
from dove_ext.tokens.files import to_bytes

ABOUT = "__dove__"  # the first member of a tar shard; `webdataset` passes over names of this form
_NONE = "0" * 32
_CHECKSUM = re.compile(rb'"checksum":"([0-9a-f]{32})"')
_HEAD = 4096  # bytes in which the checksum stands
_WRONG = (KeyError, TypeError, ValueError, RecursionError, tarfile.TarError)  # what reading nonsense raises


class Row(NamedTuple):
    """What is told of a shard.

    Attributes:
        unit: its number.
        pictures: that it has tokens of.
        tokens: of all of them.
        size: in bytes.
        checksum: 32 digits, BLAKE2b of the file with zeros in this one's place.
        unreadable: places in the unit, and why they could not be read.
        made: now; else it was there.
    """

    unit: int
    pictures: int
    tokens: int
    size: int
    checksum: str
    unreadable: tuple[tuple[int, str], ...]
    made: bool


def shard_bytes(tokens: DoveTokens, about: dict[str, Any], kind: str) -> tuple[bytes, str]:
    """The file of a shard and its checksum; the same arguments are the same bytes.

    Args:
        tokens: of its pictures, with names.
        about: plain values.
        kind: of file, one of `settings.FORMATS`.
    """
    text = json.dumps(about, separators=(",", ":"))
    if kind == WEBDATASET:
        payload = _tar(tokens, text)
    else:
        payload = to_bytes(_fields(tokens), {"checksum": _NONE, "tokenize": text})
    place = _CHECKSUM.search(payload, 0, _HEAD)
    assert place is not None
    start, stop = place.span(1)
    digest = blake2b(payload, digest_size=16).hexdigest()
    return b"".join((payload[:start], digest.encode(), memoryview(payload)[stop:])), digest


def _fields(tokens: DoveTokens) -> dict[str, Any]:
    return {field.name: getattr(tokens, field.name) for field in fields(tokens)}


def _tar(tokens: DoveTokens, about: str) -> bytes:
    """Of each picture <number>.safetensors, a token file, and <number>.json."""
    stream, facts = io.BytesIO(), json.loads(about)
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.USTAR_FORMAT) as tar:

        def add(name: str, data: bytes) -> None:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))

        add(ABOUT, f'{{"checksum":"{_NONE}",{about[1:]}'.encode())
        count = len(tokens) if tokens.tiles is None else len(tokens.tiles.pictures)
        for number in range(count):
            one = tokens[number] if tokens.tiles is None else tokens.picture(number)
            key = f"{facts['unit']:09d}-{number:06d}"
            add(f"{key}.safetensors", to_bytes(_fields(one)))
            assert one.names is not None
            note = {"key": one.names[0], "tokens": len(one.tokens), "model": one.model}
            add(f"{key}.json", json.dumps(note).encode())
    return stream.getvalue()


def read_shard(path: Path, plan: str, unit: int) -> Row | str:
    """What a file says of itself, or why it is no shard of this plan that is whole; all of it is read."""
    try:
        with path.open("rb") as file:
            if not file.seek(0, io.SEEK_END):
                return "is empty"
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return _read(data, path.suffix, plan, unit)
    except FileNotFoundError:
        return "is missing"
    except OSError as error:
        return f"cannot be read: {error.strerror or error}"


def _read(data: mmap.mmap, suffix: str, plan: str, unit: int) -> Row | str:
    place = _CHECKSUM.search(data[:_HEAD])
    if place is None:
        return "has no checksum, so no `dove tokenize` has written it"
    digest = blake2b(data[: place.start(1)], digest_size=16)
    digest.update(_NONE.encode())
    with memoryview(data) as view, view[place.end(1) :] as rest:
        digest.update(rest)
    checksum = place[1].decode()
    if digest.hexdigest() != checksum:
        return "is damaged or cut short: its checksum is another"
    try:  # a stranger can make checksums, too
        about = _tar_about(data) if suffix == ".tar" else _safetensors_about(data)
        if about["plan"] != plan or about["unit"] != unit:
            return "is of another run"
        unreadable = tuple((int(place), str(why)) for place, why in about["unreadable"])
        row = Row(
            unit, int(about["pictures"]), int(about["tokens"]), len(data), checksum, unreadable, made=False
        )
    except (*_WRONG, OverflowError):
        return "does not say what it is, so no `dove tokenize` has written it"
    return row


def _safetensors_about(data: mmap.mmap) -> dict[str, Any]:
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    about: dict[str, Any] = json.loads(header["__metadata__"]["tokenize"])
    return about


def _tar_about(data: mmap.mmap) -> dict[str, Any]:
    size = tarfile.TarInfo.frombuf(data[: tarfile.BLOCKSIZE], "utf-8", "strict").size
    about: dict[str, Any] = json.loads(data[tarfile.BLOCKSIZE : tarfile.BLOCKSIZE + size])
    return about


def shard_keys(path: Path) -> list[str]:
    """What the pictures of a whole shard are called, in order.

    Raises:
        DoveError: if it does not say so.
    """
    if path.suffix == ".tar":
        try:
            with tarfile.open(path, "r:") as tar:
                notes = [tar.extractfile(member) for member in tar if member.name.endswith(".json")]
                named = [json.load(note)["key"] for note in notes if note is not None]
        except _WRONG as error:
            raise DataError(f"{str(path)!r} does not say what its pictures are called") from error
        if not all(isinstance(key, str) for key in named):
            raise DataError(f"{str(path)!r} calls pictures by what is no text")
        return named
    from dove_ext.tokens.mapped import MappedTokens

    return list(MappedTokens(path).names or ())
