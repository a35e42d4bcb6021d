"""The grid of tiles that fits a picture larger than the model's square (docs/tiles.md)."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any, Literal, NamedTuple, TypeAlias

from dove_ext.tokens.indexing import is_int, plain_int
from dove_ext.tokens.tiles import MAX_TILES

OVERLAP = Fraction(1, 32)
"""What neighbouring tiles share at least, of their side; `decode` fades one into the other.

The code of a tile errs most along its border: without overlap the squared error at a seam is 1.3 to 1.5 times
that inside a picture (docs/tiles.md).
"""

SLACK = OVERLAP
"""A picture is made smaller by up to this share where that saves tiles.

So 768 x 512 pixels are six tiles of 256, not twelve; with this overlap any multiple of a side is as many
tiles.
"""

TileCount: TypeAlias = int | tuple[int, int] | Literal["auto"]


class Grid(NamedTuple):
    """Tiles in rows and columns, evenly spread over the picture.

    Attributes:
        rows: of tiles.
        columns: of tiles.
        height: of the picture in the grid, in pixels: its own, unless it is made to fit.
        width: likewise.
    """

    rows: int
    columns: int
    height: int
    width: int

    @property
    def tiles(self) -> int:
        """Tiles of the grid, without a thumbnail."""
        return self.rows * self.columns


def needed(length: int, side: int) -> int:
    """Tiles that cover so many pixels, each sharing enough with the next."""
    return 1 + max(0, -(-(length - side) // _step(side)))


def _step(side: int) -> int:
    return max(1, side - math.ceil(side * OVERLAP))


def _reach(tiles: int, side: int) -> int:
    """The most pixels along so many tiles."""
    return side + (tiles - 1) * _step(side)


def tile_limits(tiles: Any) -> tuple[int, int]:
    """What a caller asks for as the fewest and the most tiles of a picture.

    Args:
        tiles: the most, a pair of fewest and most, or "auto": as many as the picture's own resolution needs.

    Raises:
        ValueError: if it is none of these, or out of 1..`MAX_TILES`.
    """
    pair = (1, MAX_TILES) if isinstance(tiles, str) and tiles == "auto" else tiles
    pair = pair if isinstance(pair, tuple | list) else (1, pair)
    limits = [plain_int(n) for n in pair]
    if len(limits) == 2 and all(is_int(n) for n in limits) and 1 <= limits[0] <= limits[1] <= MAX_TILES:
        return limits[0], limits[1]
    raise ValueError(
        f"tiles must be a whole number from 1 to {MAX_TILES}, a range such as (4, 12), or 'auto', "
        f"got {tiles!r}"
    )


def choose_grid(height: int, width: int, side: int, limits: tuple[int, int]) -> Grid:
    """The grid that keeps a picture's pixels with the fewest tiles.

    A picture is never stretched, and no tile is without any of it. Of all grids of `limits` tiles those are
    taken in which the picture is largest, at most as large as it is, or up to `SLACK` smaller; of these the
    one with the fewest tiles. Where its own pixels fill fewer than `limits[0]` tiles it is enlarged: to as
    few tiles as are allowed, and of these grids to the one of which it covers most. If no grid has so many,
    the picture keeps its size.

    Args:
        height: of the picture, in pixels.
        width: likewise.
        side: of a tile.
        limits: the fewest and the most tiles.
    """
    least, most = limits
    own = Grid(needed(height, side), needed(width, side), height, width)
    if own.tiles < least:
        return _enlarged(own, side, limits)
    found = _fitted(own, side, (own.rows, own.columns), most)
    enough = {grid: scale for grid, scale in found.items() if grid.tiles >= least} or found
    large = max(enough.values()) * (1 - SLACK)
    return min((g for g in enough if enough[g] >= large), key=lambda g: (g.tiles, -enough[g], g.rows))


def _enlarged(own: Grid, side: int, limits: tuple[int, int]) -> Grid:
    least, most = limits
    found = _fitted(own, side, (most, most), most, largest=None)
    larger = {grid: scale for grid, scale in found.items() if grid.tiles >= least and scale > 1}
    return min(larger, key=lambda g: (g.tiles, -g.height * g.width, g.rows), default=own)


def _fitted(
    own: Grid, side: int, bounds: tuple[int, int], most: int, largest: int | None = 1
) -> dict[Grid, Fraction]:
    """Grids of up to `most` tiles, each with the picture as large as it fits, and its scale.

    Grids in which a row or column would hold nothing more of the picture are left out.
    """
    found = {}
    for rows in range(1, min(most, bounds[0]) + 1):
        for columns in range(1, min(most // rows, bounds[1]) + 1):
            scale = min(Fraction(_reach(rows, side), own.height), Fraction(_reach(columns, side), own.width))
            scale = scale if largest is None else min(scale, Fraction(largest))
            fitted = max(1, math.floor(own.height * scale)), max(1, math.floor(own.width * scale))
            if (needed(fitted[0], side), needed(fitted[1], side)) == (rows, columns):
                found[Grid(rows, columns, *fitted)] = scale
    return found
