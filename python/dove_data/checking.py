"""Whether everything in a set is as its manifest says."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from dove_data.manifest import file_checksum, open_keys, read_manifest
from dove_data.plan import KEYS, SHARDS, hash_key, plan_id, read_plan
from dove_data.settings import DataError
from dove_data.shards import Row, read_shard, shard_keys
from dove_ext.errors import DoveError


def verify(folder: Path) -> Iterator[str]:
    """Read all of a set; a sentence for each thing that is wrong.

    Raises:
        DataError: if it has no plan or no manifest that can be read.
    """
    plan, manifest = read_plan(folder), read_manifest(folder)
    if plan_id(plan) != manifest["plan"]:
        yield "plan.json is of another run than manifest.json"
    if len(manifest["shards"]) != plan["shards"]:
        yield f"manifest.json names {len(manifest['shards'])} shards, the plan has {plan['shards']}"
    keys = None
    try:
        keys = open_keys(folder)
        if file_checksum(folder / KEYS) != manifest["keys"]["checksum"]:
            yield f"{KEYS} is damaged: its checksum is another"
            keys = None
        elif keys.shape[1] != manifest["pictures"]:
            yield f"{KEYS} has {keys.shape[1]} pictures, the manifest {manifest['pictures']}"
            keys = None
    except DataError as error:
        yield str(error)
    start, known = 0, set()
    for unit, shard in enumerate(manifest["shards"]):
        path = folder / shard["file"]
        known.add(path)
        row = read_shard(path, manifest["plan"], unit)
        if isinstance(row, str):
            yield f"{shard['file']} {row}"
        else:
            yield from _compared(shard, row)
            if keys is not None:
                yield from _keys(path, shard["file"], keys, start, shard["pictures"])
        start += shard["pictures"]
    for path in sorted((folder / SHARDS).rglob("*")):
        if path.is_file() and path not in known:
            yield f"{path.relative_to(folder)} is not in the manifest"


def _compared(shard: dict[str, object], row: Row) -> Iterator[str]:
    there = {"pictures": row.pictures, "tokens": row.tokens, "bytes": row.size, "checksum": row.checksum}
    for name, value in there.items():
        if shard[name] != value:
            yield f"{shard['file']} has {name} {value}, the manifest says {shard[name]}"


def _keys(path: Path, name: str, keys: np.ndarray, start: int, count: int) -> Iterator[str]:
    try:
        named = shard_keys(path)
    except DoveError as error:
        yield str(error)
        return
    if len(named) != count:
        yield f"{name} has keys of {len(named)} pictures, the manifest says {count}"
        return
    for number, key in enumerate(named, start):
        value = np.uint64(hash_key(key))
        place = int(np.searchsorted(keys[0], value))
        while place < keys.shape[1] and keys[0, place] == value and keys[1, place] != number:
            place += 1
        if place == keys.shape[1] or keys[0, place] != value:
            yield f"{name}: the key {key!r} does not lead to its picture"
            return
