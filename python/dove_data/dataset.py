"""Sets of tokens by number and by key, through memory mappings."""

from __future__ import annotations

import bisect
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dove_data.manifest import Keys, candidates, open_keys, read_manifest
from dove_data.plan import shard_path
from dove_data.settings import SAFETENSORS, DataError
from dove_ext.tokens import DoveTokens
from dove_ext.tokens.mapped import MappedTokens

_MOST_OPEN = 64  # shards: of each the names and a mapping


def collate(pictures: Sequence[DoveTokens]) -> DoveTokens:
    """What a DataLoader calls to make a batch of what `TokenDataset` and `TokenStream` give.

    Args:
        pictures: of one set, or of sets of one model.

    Raises:
        TokensError: if they do not fit together.
    """
    return DoveTokens.cat(pictures)


class TokenDataset(torch.utils.data.Dataset[DoveTokens]):
    """Sets that `dove tokenize` has finished, one behind the other, for any order of reading.

    It holds 8 bytes a shard; pictures are read through memory mappings, and keys are looked up on disk. It
    can be pickled and forked: each process opens the files for itself.

    Args:
        folders: of sets, one or several. A key is looked up in them in this order.

    Raises:
        DataError: if one is not finished, damaged, or of WebDataset shards; or their models differ.

    Example:
        >>> data = TokenDataset("tokens")
        >>> data[0], data["cat.jpg"], data.key(0)
        >>> loader = DataLoader(data, batch_size=32, shuffle=True, num_workers=4, collate_fn=collate)
    """

    def __init__(self, folders: str | Path | Sequence[str | Path]) -> None:
        listed = [folders] if isinstance(folders, str | Path) else list(folders)
        if not listed:
            raise DataError("there are no sets of tokens; name at least one folder")
        self.folders = [Path(folder).absolute() for folder in listed]
        starts, shards, models = [0], [0], []
        for folder in self.folders:
            manifest = read_manifest(folder)
            if manifest["settings"]["format"] != SAFETENSORS:
                raise DataError(
                    f"{str(folder)!r} has shards for WebDataset; read it with the package webdataset, or "
                    "make it with --format safetensors"
                )
            models.append(manifest["model"]["sha256"])
            if models[-1] != models[0]:
                raise DataError(f"{str(folder)!r} and {str(self.folders[0])!r} are of different models")
            for shard in manifest["shards"]:
                starts.append(starts[-1] + shard["pictures"])
            shards.append(len(starts) - 1)
        self.starts = np.array(starts, np.int64)  # of the shards of all sets, and the end of the last
        self._shards = shards  # where each set's shards begin among them, and the end of the last
        self._forget()

    def _forget(self) -> None:
        self._open: OrderedDict[int, MappedTokens] = OrderedDict()
        self._keys: dict[int, Keys] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Without what is open."""
        return {name: value for name, value in self.__dict__.items() if name not in ("_open", "_keys")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """With nothing open."""
        self.__dict__.update(state)
        self._forget()

    def __len__(self) -> int:
        return int(self.starts[-1])

    def __getitem__(self, which: int | str) -> DoveTokens:
        """The tokens of a picture: a batch of one image, or of its tiles; its name is its key.

        Args:
            which: its number, from 0, or its key.

        Raises:
            IndexError: if there is no such number.
            KeyError: if there is no such key.
            TokensError: if its shard is missing or damaged there.
        """
        shard, row = self._find(which) if isinstance(which, str) else self._place(which)
        return self._shard(shard)[row]

    def __contains__(self, key: object) -> bool:
        try:
            return isinstance(key, str) and self._find(key) is not None
        except KeyError:
            return False

    def __iter__(self) -> Iterator[DoveTokens]:
        return (self[number] for number in range(len(self)))

    def key(self, number: int) -> str:
        """What a picture is called.

        Raises:
            IndexError: if there is no such number.
        """
        shard, row = self._place(number)
        return self._name(shard, row)

    def _place(self, number: int) -> tuple[int, int]:
        """Shard and row."""
        if not -len(self) <= number < len(self):
            raise IndexError(f"there is no picture {number} among {len(self)}")
        number = int(number) % len(self)
        shard = int(np.searchsorted(self.starts, number, "right")) - 1
        return shard, number - int(self.starts[shard])

    def _find(self, key: str) -> tuple[int, int]:
        for place, folder in enumerate(self.folders):
            if place not in self._keys:
                self._keys[place] = open_keys(folder)
            first = int(self.starts[self._shards[place]])
            for number in candidates(self._keys[place], key):
                if first + number < len(self):  # a damaged index leads anywhere
                    found = self._place(first + number)
                    if self._name(*found) == key:
                        return found
        raise KeyError(key)

    def _name(self, shard: int, row: int) -> str:
        names = self._shard(shard).names
        if names is None or row >= len(names):
            raise DataError(f"shard {shard} has no name for its picture {row}; run dove tokenize --verify")
        return names[row]

    def _shard(self, shard: int) -> MappedTokens:
        if shard in self._open:
            self._open.move_to_end(shard)
            return self._open[shard]
        place = bisect.bisect_right(self._shards, shard) - 1
        opened = MappedTokens(shard_path(self.folders[place], shard - self._shards[place], SAFETENSORS))
        self._open[shard] = opened
        if len(self._open) > _MOST_OPEN:
            self._open.popitem(last=False)
        return opened
