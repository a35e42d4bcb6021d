"""A file of tokens whose pictures are read one at a time, in any order, through a memory mapping."""

from __future__ import annotations

import os
from typing import Any

import torch

from dove_ext.errors import TokensError
from dove_ext.tokens.container import DoveTokens
from dove_ext.tokens.files import check_values, open_file, read_header


class MappedTokens:
    """The pictures of a file that `DoveTokens.save` or `dove tokenize` wrote.

    Only what is asked for is read, and checked as `DoveTokens.load` checks a whole file. It cannot be
    pickled: open the file anew in another process.

    Args:
        path: of the file.

    Attributes:
        names: one for each picture, or None.

    Raises:
        TokensError: if the file is missing, damaged, or not of this kind.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._name = repr(str(path))
        with open_file(path) as file:
            self._fields = read_header(file, self._name)
            self._offsets: list[int] = file.get_tensor("cu_seqlens").tolist()
            # The slices keep the mapping.
            self._slices = {key: file.get_slice(key) for key in file.keys() if key != "cu_seqlens"}  # noqa: SIM118
        rows = len(self._offsets) - 1
        tiles, names = self._fields["tiles"], self._fields["names"]
        for what, count in (("names", names), ("places of tiles", tiles and tiles.places)):
            if count is not None and len(count) != rows:
                raise TokensError(f"{self._name} is not valid: it has {len(count)} {what} for {rows} images")
        self._rows = [[row] for row in range(rows)]
        if tiles is not None:
            self._rows = [tiles.rows(picture) for picture in range(len(tiles.pictures))]
        self.names: tuple[str, ...] | None = names
        if tiles is not None and names is not None:
            self.names = tuple(names[rows[0]] for rows in self._rows)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, picture: int) -> DoveTokens:
        """The tokens of one picture: one image, or all of its tiles; copied out of the mapping.

        Raises:
            IndexError: if there is no such picture.
            TokensError: if what the file holds there is not valid.
        """
        rows = self._rows[picture]
        parts = [self._run(rows[0], rows[-1] + 1)]
        if len(rows) < rows[-1] + 1 - rows[0]:  # tiles that somebody has put in another order
            parts = [self._run(row, row + 1) for row in rows]
        try:
            fields = {**self._fields, "names": None, "tiles": None}
            run = [DoveTokens(**{**fields, **part}) for part in parts]
            tokens = run[0] if len(run) == 1 else DoveTokens.cat(run)
            names, tiles = self._fields["names"], self._fields["tiles"]
            beside: dict[str, Any] = {
                "names": names and tuple(names[row] for row in rows),
                "tiles": tiles and tiles.select(rows),
            }
            return DoveTokens(
                **{**{field: getattr(tokens, field) for field in fields}, **beside},
            )
        except TokensError as error:
            raise TokensError(f"{self._name} is not valid: {error}") from error

    def _run(self, start: int, stop: int) -> dict[str, Any]:
        """The tensors of neighbouring images."""
        offsets = self._offsets[start : stop + 1]
        first, last = offsets[0], offsets[-1]
        if not 0 <= first <= last <= self._slices["tokens"].get_shape()[0]:
            raise TokensError(f"{self._name} is not valid: its cu_seqlens lead out of its tokens")
        tensors = {"tokens": self._slices["tokens"][first:last].clone()}
        for key, values in self._slices.items():
            if key != "tokens":
                if values.get_shape()[0] < stop:
                    raise TokensError(f"{self._name} is not valid: {key} has not a row for every image")
                tensors[key] = values[start:stop].clone()
        check_values(tensors, self._name)
        tensors["cu_seqlens"] = torch.tensor([offset - first for offset in offsets], dtype=torch.int32)
        return tensors
