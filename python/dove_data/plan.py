"""The plan of a run: what is made of which pictures, written before the first shard and never changed."""

from __future__ import annotations

import fcntl
import json
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import blake2b, sha256
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from dove_data.settings import WEBDATASET, DataError, Settings
from dove_ext.atomic import atomic_write, make_writable_folder
from dove_ext.images.index import ImageIndex
from dove_ext.models.pretrained import CONFIG, TOKENIZER, WEIGHTS, find_model

PLAN, MANIFEST, KEYS, SHARDS = "plan.json", "manifest.json", "keys.npy", "shards"
LOCK = ".lock"
FORMAT, VERSION = "dove-tokenize", 1
ABOUT: dict[str, Any] = {
    "settings": {"format": str},
    "model": {"name": str, "sha256": str},
    "source": {"pictures": int, "sha256": str},
    "software": dict,
}
"""What plan and manifest both say, as `fits` takes it."""
_IN_FOLDER = 1000  # shards


class Listed(NamedTuple):
    """What a list of pictures comes down to.

    Attributes:
        digest: of names, sizes and places, relative to the paths given, which may move.
        hashes: uint64 [N], of the keys.
    """

    digest: str
    hashes: npt.NDArray[np.uint64]


def hash_key(key: str) -> int:
    """Of what a picture is called, 64 bits."""
    try:
        data = key.encode("utf-8", "surrogateescape")  # which names of files may need
    except UnicodeEncodeError:
        data = key.encode("utf-8", "surrogatepass")
    return int.from_bytes(blake2b(data, digest_size=8).digest(), "little")


def look_through(index: ImageIndex) -> Listed:
    """Go through a list once.

    Raises:
        DataError: if two pictures have the same key.
    """
    digest, hashes = sha256(), np.empty(len(index), np.uint64)
    last: Path | None = None
    sizes = index.sizes(0, len(index))
    for i in range(len(index)):
        key, location = index.short_name(i), index.locate(i)
        hashes[i] = hash_key(key)
        beside: tuple[int, ...] = sizes[i]
        if location.file != last:
            last = location.file
            beside = (*beside, _size(last))
        digest.update(f"{key!r} {beside}\n".encode())
    _refuse_twice(index, hashes)
    return Listed(digest.hexdigest(), hashes)


def _size(file: Path) -> int:
    try:
        return file.stat().st_size
    except OSError:  # the picture will be named as unreadable
        return -1


def _refuse_twice(index: ImageIndex, hashes: npt.NDArray[np.uint64]) -> None:
    order = np.argsort(hashes, kind="stable")
    same = np.flatnonzero(hashes[order][1:] == hashes[order][:-1])
    for place in same.tolist():
        i, j = int(order[place]), int(order[place + 1])
        if (key := index.short_name(i)) == index.short_name(j):
            raise DataError(
                f"the key {key!r} is there twice, of {index.name(i)!r} (number {i}) and {index.name(j)!r} "
                f"(number {j}); a key names one picture: rename one, or choose another --key-column"
            )


def fingerprint(model: str) -> str:
    """Of the files that make a model what it is."""
    folder, digest = find_model(model), sha256()
    for name in (CONFIG, WEIGHTS, TOKENIZER):
        if (folder / name).is_file():
            digest.update(f"{name}\n".encode())
            with (folder / name).open("rb") as file:
                while chunk := file.read(1 << 20):
                    digest.update(chunk)
    return digest.hexdigest()


def make_plan(settings: Settings, index: ImageIndex, listed: Listed) -> dict[str, Any]:
    """The plan of a run, as JSON has it."""
    size = settings.shard_size
    plan = {
        "format": FORMAT,
        "version": VERSION,
        "settings": settings.plain(),
        "model": {"name": settings.model, "sha256": fingerprint(settings.model)},
        "source": {"pictures": len(index), "sha256": listed.digest},
        "shards": -(-len(index) // size),
        "software": {name: _version(name) for name in ("dove-ext", "torch")},
    }
    return json.loads(json.dumps(plan))


def plan_id(plan: dict[str, Any]) -> str:
    """What the shards of a plan say that they belong to; the model's name is not part of it."""
    values = {**plan, "model": plan["model"]["sha256"]}
    return sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:32]


def begin(folder: Path, plan: dict[str, Any]) -> None:
    """Write the plan, or find the same one there; one of which nothing was made yet gives way.

    Raises:
        DataError: if the folder holds a plan that differs, saying in what.
        OutputError: if it cannot be written.
    """
    if (folder / PLAN).exists():
        differences = _differences(read_plan(folder), plan)
        if not differences:
            return
        if any(path.name != PLAN and path.name[0] != "." for path in folder.iterdir()):
            raise DataError(
                f"{str(folder)!r} was begun otherwise: {'; '.join(differences)}; ask for what it was begun "
                "with, or choose another folder"
            )
    with atomic_write(folder / PLAN) as temporary:
        temporary.write_text(json.dumps(plan, indent=2), encoding="utf-8")


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """While the block runs, no other run works in the folder; a lock ends with its process, however it ends.

    Raises:
        DataError: if another does, or something else than a set is there.
        OutputError: if the folder cannot be made or written.
    """
    if not (folder / PLAN).exists() and folder.is_dir():
        others = sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
        if others:
            raise DataError(
                f"{str(folder)!r} holds {others[0]!r}, and no `dove tokenize` was begun there; choose an "
                "empty or a new folder"
            )
    with (make_writable_folder(folder) / LOCK).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise DataError(f"another `dove tokenize` is at work in {str(folder)!r}; wait for it") from error
        except OSError:  # some network file systems have no locks
            pass
        yield


def read_plan(folder: Path) -> dict[str, Any]:
    """The plan in a folder.

    Raises:
        DataError: if there is none, or it is damaged or of a newer version.
    """
    why = "no plan of `dove tokenize` is there; name a folder that it has written"
    return read_json(folder / PLAN, why, {"shards": int, **ABOUT})


def read_json(path: Path, why_missing: str, shape: dict[str, Any]) -> dict[str, Any]:
    """A JSON object that this package has written, of a shape as `fits` takes it.

    Raises:
        DataError: if it is missing, damaged, of another kind or of a newer version.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise DataError(f"{str(path)!r} does not exist: {why_missing}") from error
    except OSError as error:
        raise DataError(f"{str(path)!r} cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"{str(path)!r} is damaged ({str(error)[:100]}); remove its folder and begin anew"
        ) from error
    if not isinstance(value, dict) or value.get("format") != FORMAT or value.get("version") != VERSION:
        raise DataError(f"{str(path)!r} is not of `dove tokenize`, or of a newer one; upgrade dove-ext")
    if not fits(value, shape):
        raise DataError(f"{str(path)!r} is damaged; remove its folder and begin anew")
    return value


def fits(value: Any, shape: Any) -> bool:
    """Whether a plain value has at least what a shape asks for.

    Args:
        value: of a JSON file.
        shape: a type, where whole numbers are not negative; a list of the shape of all items; or a dict of
            the names that must be there, with their shapes.
    """
    if isinstance(shape, dict):
        return isinstance(value, dict) and all(n in value and fits(value[n], s) for n, s in shape.items())
    if isinstance(shape, list):
        return isinstance(value, list) and all(fits(item, shape[0]) for item in value)
    return type(value) is shape and (shape is not int or value >= 0)


def shard_name(unit: int, kind: str) -> str:
    """A shard's path within its set."""
    suffix = ".tar" if kind == WEBDATASET else ".safetensors"
    return f"{SHARDS}/{unit // _IN_FOLDER:06d}/{unit:09d}{suffix}"


def shard_path(folder: Path, unit: int, kind: str) -> Path:
    """Where a shard lies."""
    return folder / shard_name(unit, kind)


def _differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    found = []
    for name in sorted({*before["settings"], *now["settings"]}):
        a, b = before["settings"].get(name), now["settings"].get(name)
        if a != b:
            found.append(f"--{name.replace('_', '-')} {_said(a)}, now {_said(b)}")
    if before["model"]["sha256"] != now["model"]["sha256"]:
        names = before["model"]["name"], now["model"]["name"]
        other = f"model {names[0]!r}, now {names[1]!r}"
        found.append(other if names[0] != names[1] else f"another {names[0]!r}: its files have changed")
    a, b = before["source"]["pictures"], now["source"]["pictures"]
    if a != b:
        found.append(f"{a} pictures, now {b}")
    elif before["source"] != now["source"]:
        found.append(f"{a} pictures as before, but of other names, sizes or order")
    for name, now_there in now["software"].items():
        if before["software"].get(name) != now_there:
            found.append(f"{name} {before['software'].get(name)}, now {now_there}")
    return found


def _said(value: Any) -> str:
    if isinstance(value, list):
        return "-".join(map(str, value))
    return (
        "not given"
        if value is None or value is False
        else repr(value)
        if isinstance(value, str)
        else str(value)
    )


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "(not installed)"
