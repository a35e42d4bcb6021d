"""What a finished set says of itself: manifest.json, and an index by key, keys.npy."""

from __future__ import annotations

import json
from collections.abc import Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from dove_data.plan import ABOUT, FORMAT, KEYS, MANIFEST, VERSION, hash_key, plan_id, read_json, shard_name
from dove_data.settings import DataError
from dove_data.shards import Row
from dove_ext.atomic import atomic_write
from dove_ext.images.index import ImageIndex

_BYTES_A_KEY = 16
_SHARD = {"file": str, "pictures": int, "tokens": int, "bytes": int, "checksum": str}
_SHAPE = {
    **ABOUT, "plan": str, "pictures": int, "keys": {"file": str, "checksum": str}, "shards": [_SHARD],
}  # fmt: skip
Keys = npt.NDArray[np.uint64]
"""[2, N]: hashes of keys in ascending order, and beside each the number of its picture in the set."""


def write_manifest(
    folder: Path, plan: dict[str, Any], rows: Sequence[Row], index: ImageIndex, hashes: npt.NDArray[np.uint64]
) -> dict[str, Any]:
    """Finish a set: write the index of keys, and last the manifest.

    Args:
        folder: of the set.
        plan: it was made by.
        rows: of all units, in order.
        index: of the pictures.
        hashes: of their keys.

    Returns:
        dict: the manifest.
    """
    size = plan["settings"]["shard_size"]
    places = [row.unit * size + place for row in rows for place, _ in row.unreadable]
    kept = np.ones(len(index), bool)
    kept[places] = False
    order = np.argsort(hashes[kept], kind="stable")
    keys = np.stack((hashes[kept][order], order.astype(np.uint64)))
    with atomic_write(folder / KEYS) as temporary, temporary.open("wb") as file:
        np.save(file, keys)
    reasons = [why for row in rows for _, why in row.unreadable]
    kind = plan["settings"]["format"]
    manifest = {
        "format": FORMAT,
        "version": VERSION,
        "plan": plan_id(plan),
        **{name: plan[name] for name in ("settings", "model", "source", "software")},
        "pictures": sum(row.pictures for row in rows),
        "tokens": sum(row.tokens for row in rows),
        "bytes": sum(row.size for row in rows),
        "keys": {"file": KEYS, "checksum": file_checksum(folder / KEYS)},
        "unreadable": [
            {"key": index.short_name(i), "reason": why} for i, why in zip(places, reasons, strict=True)
        ],
        "shards": [
            {
                "file": shard_name(row.unit, kind),
                "pictures": row.pictures,
                "tokens": row.tokens,
                "bytes": row.size,
                "checksum": row.checksum,
            }
            for row in rows
        ],
    }
    with atomic_write(folder / MANIFEST) as temporary:
        temporary.write_text(json.dumps(manifest, indent=1), encoding="utf-8")
    return manifest


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a finished set.

    Raises:
        DataError: if there is none, or it is damaged.
    """
    path = folder / MANIFEST
    why_missing = "the set is not finished, or is none; the command that began it goes on"
    manifest = read_json(path, why_missing, _SHAPE)
    kind, shards = manifest["settings"]["format"], manifest["shards"]
    right = sum(shard["pictures"] for shard in shards) == manifest["pictures"]
    right = right and all(shard["file"] == shard_name(unit, kind) for unit, shard in enumerate(shards))
    if not right or manifest["keys"]["file"] != KEYS:
        raise DataError(f"{str(path)!r} is damaged; run the command that made it again")
    try:
        size = (folder / KEYS).stat().st_size
    except OSError as error:
        raise DataError(f"{str(folder / KEYS)!r} cannot be read ({error.strerror or error})") from error
    if size < _BYTES_A_KEY * manifest["pictures"]:  # so no count asks for more memory than files have bytes
        raise DataError(f"{str(folder / KEYS)!r} is cut short, or {MANIFEST} damaged; make the set again")
    return manifest


def open_keys(folder: Path) -> Keys:
    """The index by key, memory-mapped.

    Raises:
        DataError: if it is missing or damaged.
    """
    try:
        keys: Any = np.load(folder / KEYS, mmap_mode="r")
    except Exception as error:  # numpy raises what its parts happen to: an EOFError, a TokenError
        why = " ".join(f"{error or type(error).__name__}".split())
        raise DataError(f"{str(folder / KEYS)!r} cannot be read ({why:.200}); make the set again") from error
    if not isinstance(keys, np.ndarray) or keys.ndim != 2 or keys.shape[0] != 2 or keys.dtype != np.uint64:
        raise DataError(f"{str(folder / KEYS)!r} is damaged; run the command that made the set again")
    return keys


def candidates(keys: Keys, key: str) -> list[int]:
    """Numbers of pictures that may be called `key`: hardly ever more than one."""
    value = np.uint64(hash_key(key))
    first, last = (int(np.searchsorted(keys[0], value, side)) for side in ("left", "right"))
    return [int(number) for number in keys[1, first:last]]


def file_checksum(path: Path) -> str:
    """BLAKE2b of a file, 32 digits."""
    digest = blake2b(digest_size=16)
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
