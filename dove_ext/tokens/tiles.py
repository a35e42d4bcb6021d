"""Which rows of a `DoveTokens` are tiles of one picture, and where in it they lie."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

from dove_ext.errors import TokensError
from dove_ext.tokens.indexing import is_int

MAX_TILES = 4096
"""The most tiles of a picture, and what "auto" means: 128 million pixels have some 2,300."""

MOST_PIXELS = 128_000_000
"""Of a picture that tiles make up; a file cannot ask `decode` for more."""

WHOLE = -1
"""Row and column of a thumbnail, which shows the whole picture."""


class Place(NamedTuple):
    """Where a tile lies.

    Attributes:
        picture: which of `Tiles.pictures`.
        row: in the grid, from 0 at the top; `WHOLE` of a thumbnail.
        column: in the grid, from 0 at the left; `WHOLE` of a thumbnail.
    """

    picture: int
    row: int
    column: int

    @property
    def is_thumbnail(self) -> bool:
        """Whether this is the whole picture, small."""
        return self.row == WHOLE


class TiledPicture(NamedTuple):
    """A picture that was cut into tiles.

    Attributes:
        rows: of the grid.
        columns: of the grid.
        height: of the picture in the grid, in pixels; it lies in the grid: its own, unless it was made to
            fit.
        width: likewise.
        given_height: of the picture as it was given, in pixels.
        given_width: likewise.
    """

    rows: int
    columns: int
    height: int
    width: int
    given_height: int
    given_width: int


class Box(NamedTuple):
    """Pixels of a picture in its grid, `bottom` and `right` behind the last."""

    top: int
    left: int
    bottom: int
    right: int


def start_of(tile: int, tiles: int, length: int, side: int) -> int:
    """The first pixel of a tile, from 0, of so many that are evenly spread over a length."""
    return (2 * tile * (length - side) + tiles - 1) // (2 * (tiles - 1)) if tiles > 1 else 0


@dataclass(frozen=True)
class Tiles:
    """The tiles of a `DoveTokens`, one for each of its images.

    Attributes:
        side: of a tile, in pixels.
        pictures: one or more, each with at least one tile here; not all of its tiles have to be.
        places: one for each image of the tokens; no two are the same.

    Raises:
        TokensError: on construction, if they contradict one another.
    """

    side: int
    pictures: tuple[TiledPicture, ...]
    places: tuple[Place, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "pictures", tuple(TiledPicture(*p) for p in self.pictures))
        object.__setattr__(self, "places", tuple(Place(*p) for p in self.places))
        numbers = [self.side, *(n for p in (*self.pictures, *self.places) for n in p)]
        if not all(is_int(n) for n in numbers):
            raise TokensError("the tiles hold something that is no whole number")
        if self.side < 1:
            raise TokensError(f"the side of a tile must be at least 1 pixel, got {self.side}")
        for number, picture in enumerate(self.pictures):
            self._check_picture(number, picture)
        for place in self.places:
            self._check_place(place)
        if len(set(self.places)) < len(self.places):
            twice = next(p for p in self.places if self.places.count(p) > 1)
            raise TokensError(f"{_named(twice)} is there twice")
        if len({place.picture for place in self.places}) < len(self.pictures):
            raise TokensError("there is a picture without any tile")

    def _check_picture(self, number: int, picture: TiledPicture) -> None:
        grid = f"picture {number} of {picture.width} x {picture.height} pixels"
        if min(picture) < 1 or picture.height * picture.width > MOST_PIXELS:
            raise TokensError(
                f"{grid} in {picture.columns} x {picture.rows} tiles must have at least one of each, and at "
                f"most {MOST_PIXELS} pixels"
            )
        if picture.rows * picture.columns > MAX_TILES:
            raise TokensError(
                f"{grid} in {picture.columns} x {picture.rows} tiles has more than {MAX_TILES} of them"
            )
        for tiles, length in ((picture.rows, picture.height), (picture.columns, picture.width)):
            beyond = length - self.side  # of a single tile; each further one brings 1 to `side` pixels
            if not (tiles - 1 <= beyond <= (tiles - 1) * self.side if tiles > 1 else beyond <= 0):
                raise TokensError(f"{grid} does not fill {picture.columns} x {picture.rows} tiles")

    def _check_place(self, place: Place) -> None:
        if not 0 <= place.picture < len(self.pictures):
            raise TokensError(f"a tile is of picture {place.picture}, there are {len(self.pictures)}")
        picture = self.pictures[place.picture]
        thumbnail = place.row == place.column == WHOLE
        if not thumbnail and not (0 <= place.row < picture.rows and 0 <= place.column < picture.columns):
            raise TokensError(
                f"{_named(place)} is outside of its grid of {picture.rows} rows and {picture.columns} columns"
            )

    # --- From pictures to tiles and back --------------------------------------------------------------

    def rows(self, picture: int) -> list[int]:
        """Which images of the tokens are tiles of a picture, in their order; its thumbnail is one of them.

        Raises:
            IndexError: if there is no such picture.
        """
        if not -len(self.pictures) <= picture < len(self.pictures):
            raise IndexError(f"there is no picture {picture} among {len(self.pictures)}")
        return list(self._rows[picture])

    @cached_property
    def _rows(self) -> list[list[int]]:
        rows: list[list[int]] = [[] for _ in self.pictures]
        for row, place in enumerate(self.places):
            rows[place.picture].append(row)
        return rows

    def sums(self, lengths: Sequence[int]) -> list[int]:
        """Of each picture the sum over its tiles of what each image of the tokens has."""
        sums = [0] * len(self.pictures)
        for place, length in zip(self.places, lengths, strict=True):
            sums[place.picture] += length
        return sums

    def box(self, place: Place) -> Box:
        """What a tile shows of its picture, without padding; of a thumbnail all of it."""
        picture = self.pictures[place.picture]
        if place.is_thumbnail:
            return Box(0, 0, picture.height, picture.width)
        top = start_of(place.row, picture.rows, picture.height, self.side)
        left = start_of(place.column, picture.columns, picture.width, self.side)
        bottom, right = min(picture.height, top + self.side), min(picture.width, left + self.side)
        return Box(top, left, bottom, right)

    # --- As the tokens change -------------------------------------------------------------------------

    def select(self, chosen: Sequence[int]) -> Tiles:
        """Those of the chosen images, in this order.

        Tiles of one picture stay together, wherever they stand; a tile that is chosen once more begins the
        same picture anew.
        """
        pictures: list[TiledPicture] = []
        newest: dict[int, int] = {}  # what the last part of a picture is called now
        places: dict[Place, None] = {}
        for row in chosen:
            old, *where = self.places[row]
            if old not in newest or Place(newest[old], *where) in places:
                newest[old] = len(pictures)
                pictures.append(self.pictures[old])
            places[Place(newest[old], *where)] = None
        return replace(self, pictures=tuple(pictures), places=tuple(places))

    @staticmethod
    def cat(parts: Sequence[Tiles]) -> Tiles:
        """Those of joined tokens, whose pictures come one after the other.

        Raises:
            TokensError: if their sides differ.
        """
        first = parts[0]
        pictures: list[TiledPicture] = []
        places: list[Place] = []
        for part in parts:
            if part.side != first.side:
                raise TokensError(f"cannot join tiles of {first.side} and of {part.side} pixels")
            places += [place._replace(picture=place.picture + len(pictures)) for place in part.places]
            pictures += part.pictures
        return replace(first, pictures=tuple(pictures), places=tuple(places))

    # --- On disk --------------------------------------------------------------------------------------

    def to_json(self) -> str:
        """For the header of a file."""
        return json.dumps([self.side, self.pictures, self.places])

    @staticmethod
    def from_json(text: str) -> Tiles:
        """Read `to_json`'s output, which may come from a stranger.

        Raises:
            TokensError: if it is something else, or contradicts itself.
        """
        try:
            side, pictures, places = json.loads(text)
            held = tuple(TiledPicture(*p) for p in pictures), tuple(Place(*p) for p in places)
        except (ValueError, TypeError, RecursionError) as error:
            raise TokensError("its tiles are not a list of side, pictures and places") from error
        return Tiles(side, *held)


def _named(place: Place) -> str:
    if place.is_thumbnail:
        return f"the thumbnail of picture {place.picture}"
    return f"the tile in row {place.row}, column {place.column} of picture {place.picture}"


def tiles_of(value: Any, images: int) -> Tiles | None:
    """The `tiles` of tokens of so many images, checked.

    Raises:
        TokensError: if it is something else, or of another number of images.
    """
    if value is None:
        return None
    if not isinstance(value, Tiles):
        raise TokensError(f"tiles must be a `Tiles` or None, got {type(value).__name__}")
    if len(value.places) != images:
        raise TokensError(f"there are {len(value.places)} places of tiles for {images} images; give one each")
    return value
