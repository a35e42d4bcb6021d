"""What is said about the pictures of an index besides their pixels: by folders, and by JSON in shards."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from dove_ext.errors import ImageError
from dove_ext.images.index import ImageIndex
from dove_ext.images.shards import Member, list_members, read_member
from dove_ext.images.tables import is_table

TRAIN, TEST = "train", "test"
_SPLITS = {"train": TRAIN, "training": TRAIN, "test": TEST, "val": TEST, "valid": TEST, "validation": TEST}


class Notes:
    """The notes and labels of an index's pictures; quick in the index's order: one shard is listed at a time.

    Args:
        index: of the pictures.
    """

    def __init__(self, index: ImageIndex) -> None:
        self.index = index
        self._shard: Path | None = None
        self._places: dict[str, list[Member]] = {}

    def note(self, i: int) -> dict[str, Any] | None:
        """What `<key>.json` beside a shard's picture says; None without one, and of a file or a row.

        Raises:
            ImageError: naming the JSON, if it is no JSON object, or the shard cannot be read.
        """
        location = self.index.locate(i)
        shard, member = location.file, location.member
        if member is None or is_table(shard):
            return None
        if shard != self._shard:
            self._shard, self._places = shard, {}
            for found in list_members(shard):
                if found.name.endswith(".json") and not found.fault:
                    self._places.setdefault(found.name.removesuffix(".json"), []).append(found)
        key = member.rpartition(".")[0]
        if key not in self._places:
            return None
        # Shards that were joined may use a key twice; the files of one sample lie side by side.
        place = min(self._places[key], key=lambda found: abs(found.offset - location.offset))
        data = read_member(shard, place.name, place.offset, place.size)
        return _object(data, repr(f"{shard}: {key}.json"))

    def label(self, i: int) -> tuple[str | None, str | None]:
        """Class and split of a picture: by its folders (train/cat/1.jpg), in a shard by its note.

        Returns:
            (str | None, str | None): the class, and `TRAIN`, `TEST` or another word that a note has; None
            where nothing is said.

        Raises:
            ImageError: as for `note`.
        """
        location = self.index.locate(i)
        if location.member is None:
            folders = location.inside.split("/")[:-1]
            # train/cat/1.jpg, cat/1.jpg, cat/train/1.jpg: the first folder that names no split is the class.
            split = next((_SPLITS[name.lower()] for name in folders if name.lower() in _SPLITS), None)
            return next((name for name in folders if name.lower() not in _SPLITS), None), split
        note = self.note(i) or {}
        label, split = note.get("label"), note.get("split")
        if split is not None:
            split = _SPLITS.get(str(split).lower(), str(split))
        return None if label is None else str(label), split


def _object(data: bytes, name: str) -> dict[str, Any]:
    """What a shard says about one image."""
    try:
        note = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ImageError(f"{name} is not JSON ({error}); rebuild the shard") from error
    if not isinstance(note, dict):
        raise ImageError(f'{name} must be a JSON object such as {{"label": "cat"}}; rebuild the shard')
    return note
