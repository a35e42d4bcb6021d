"""Tokens of many pictures in one file, so that every run over them reads and none encodes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dove_ext.errors import DoveError

Made = Iterable[tuple[str, Tensor, int]]
"""Name of a picture (or of picture and question), its tokens [n, D], and its own length."""


@dataclass(frozen=True)
class AtLeast:
    """The encoder's own length, but no fewer tokens than this (`encode`'s `min_tokens`)."""

    tokens: int

    def __str__(self) -> str:
        return f"own, at least {self.tokens}"


Count = int | AtLeast | None
"""How many tokens of a picture: so many, or by itself; None: as many as are its own."""


class Store:
    """What `write` wrote.

    Args:
        folder: of it.

    Attributes:
        width: D.
        made_of: what `write` was told of encoder and pictures.
    """

    def __init__(self, folder: Path) -> None:
        about = json.loads((folder / "about.json").read_text(encoding="utf-8"))
        self.width: int = about["width"]
        self.made_of: str = about.get("made_of", "")
        self._place = {name: i for i, name in enumerate(about["names"])}
        self._ends, self._own = np.load(folder / "ends.npy"), np.load(folder / "own.npy")
        self._tokens = np.memmap(folder / "tokens.f16", np.float16, "r").reshape(-1, self.width)

    def __contains__(self, name: str) -> bool:
        return name in self._place

    def own(self, name: str) -> int:
        """The length that the encoder chose; of one with a fixed length, that."""
        return int(self._own[self._place[name]])

    def length(self, name: str, count: Count) -> int:
        """How many that is for a picture."""
        i = self._place[name]
        if not isinstance(count, int):
            count = max(self.own(name), 1 if count is None else count.tokens)
        return min(count, int(self._ends[i]) - self._start(i))

    def _start(self, i: int) -> int:
        return int(self._ends[i - 1]) if i else 0

    def tokens(self, name: str, count: Count = None) -> Tensor:
        """The first tokens of a picture, float32 [n, D]."""
        start, n = self._start(self._place[name]), self.length(name, count)
        return torch.from_numpy(self._tokens[start : start + n].astype(np.float32))


def opened(folder: Path, made_of: str) -> Store:
    """A store that is there.

    Raises:
        DoveError: if it was made of something else than `made_of`.
    """
    kept = Store(folder)
    if kept.made_of != made_of:
        raise DoveError(
            f"the tokens in {str(folder)!r} are another encoder's, or of other pictures; give another -o"
        )
    return kept


def write(folder: Path, made: Made, made_of: str = "") -> Store:
    """Write tokens as float16; a folder that is there is kept.

    Raises:
        DoveError: as `opened`; `made_of` is a digest of encoder and pictures.
    """
    if folder.exists():
        return opened(folder, made_of)
    new = folder.with_name(folder.name + ".new")
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True)
    names: list[str] = []
    ends: list[int] = []
    own: list[int] = []
    width = 0
    with (new / "tokens.f16").open("wb") as file:
        for name, tokens, length in made:
            width = tokens.shape[1]
            file.write(tokens.to(torch.float16).numpy().tobytes())
            names.append(name), own.append(length)
            ends.append(len(tokens) + (ends[-1] if ends else 0))
    np.save(new / "ends.npy", np.array(ends)), np.save(new / "own.npy", np.array(own))
    about = {"width": width, "names": names, "made_of": made_of}
    (new / "about.json").write_text(json.dumps(about), encoding="utf-8")
    new.replace(folder)
    return Store(folder)


def batches(names: Sequence[str], size: int) -> Iterable[Sequence[str]]:
    """Neighbours, at most `size` at once."""
    return (names[i : i + size] for i in range(0, len(names), size))
