"""The choice of a grid for a picture, and the tiles that are cut by it."""

from __future__ import annotations

import io
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from dove_ext.errors import ImageError
from dove_ext.images.cut import Tile, cut, resized, tile_counts, waiting
from dove_ext.images.tiles import MAX_TILES, OVERLAP, SLACK, choose_grid, needed, tile_limits
from dove_ext.tokens.tiles import WHOLE, TiledPicture, Tiles, start_of
from tests.images.test_prepare import photo

settings.register_profile("untimed", deadline=None)  # a busy machine is no fault
settings.load_profile("untimed")

SIDE = 32
sides = st.integers(1, 400)


@pytest.mark.parametrize(
    ("size", "limits", "expected"),
    [
        ((512, 768), (1, 12), (2, 3, 501, 752)),  # a multiple of the side costs no further tiles
        ((256, 256), (1, 12), (1, 1, 256, 256)),
        ((100, 60), (1, 12), (1, 1, 100, 60)),  # not enlarged
        ((600, 800), (1, 12), (3, 4, 600, 800)),
        ((600, 800), (1, 6), (2, 3, 504, 672)),
        ((9000, 12000), (1, 12), (3, 4, 750, 1000)),
        ((1080, 1920), (1, MAX_TILES), (5, 8, 1080, 1920)),
        ((40, 4000), (1, 12), (1, 12, 29, 2984)),
        ((300, 300), (1, 1), (1, 1, 256, 256)),
        ((100, 100), (4, 12), (2, 2, 504, 504)),  # enlarged as far as the caller insists
        ((100, 100), (2, 3), (1, 1, 100, 100)),  # of two or three tiles one would be empty
    ],
)
def test_grids_of_256(size: tuple[int, int], limits: tuple[int, int], expected: tuple[int, ...]) -> None:
    assert choose_grid(*size, 256, limits) == expected


@given(sides, sides, st.integers(1, 5), st.integers(0, 20))
def test_a_grid(height: int, width: int, least: int, more: int) -> None:
    most = least + more
    grid = choose_grid(height, width, SIDE, (least, most))
    assert 1 <= grid.tiles <= most
    turned = choose_grid(width, height, SIDE, (least, most))
    assert turned.tiles == grid.tiles, "a picture lying on its side has as many tiles"
    # Not stretched, to a pixel; enlarged only where the caller wants more tiles than there are pixels for.
    scale = Fraction(grid.height * grid.width, height * width)
    assert abs(grid.height * width - grid.width * height) <= max(height, width) + max(grid.height, grid.width)
    if scale > 1:
        assert needed(height, SIDE) * needed(width, SIDE) < least <= grid.tiles
    # Every tile shows some of the picture that no other does, and shares enough with the next.
    for tiles, length in ((grid.rows, grid.height), (grid.columns, grid.width)):
        starts = [start_of(k, tiles, length, SIDE) for k in range(tiles)]
        assert starts[0] == 0 and starts[-1] == max(0, length - SIDE)
        steps = {b - a for a, b in pairwise(starts)}
        assert all(0 < step <= SIDE * (1 - OVERLAP) for step in steps) and len(steps) <= 2
    # What it says of itself is what a file of tokens may say.
    Tiles(SIDE, (TiledPicture(*grid, height, width),), ((0, WHOLE, WHOLE),))  # type: ignore[arg-type]


@given(sides, sides, st.integers(1, 30))
def test_no_other_grid_holds_more_or_as_much_with_fewer_tiles(height: int, width: int, most: int) -> None:
    grid = choose_grid(height, width, SIDE, (1, most))

    def scale(rows: int, columns: int) -> float:
        reach = [SIDE + (n - 1) * (SIDE - 1) for n in (rows, columns)]
        return min(1.0, reach[0] / height, reach[1] / width)

    own = scale(grid.rows, grid.columns)
    for rows in range(1, most + 1):
        for columns in range(1, most // rows + 1):
            other = scale(rows, columns)
            assert own >= other * (1 - SLACK) - 1e-9
            if rows * columns < grid.tiles:
                best = max(scale(r, c) for r in range(1, most + 1) for c in range(1, most // r + 1))
                assert other < best * (1 - SLACK) + 1e-9


@pytest.mark.parametrize(
    ("given", "limits"),
    [(12, (1, 12)), ((4, 12), (4, 12)), ([2, 2], (2, 2)), ("auto", (1, MAX_TILES)), (np.int64(3), (1, 3))],
)
def test_limits(given: Any, limits: tuple[int, int]) -> None:
    assert tile_limits(given) == limits


@pytest.mark.parametrize(
    "wrong", [0, -1, 2.5, True, "12", "", (12, 4), (0, 4), (1, 2, 3), (), MAX_TILES + 1, np.zeros(2)]
)
def test_wrong_limits(wrong: Any) -> None:
    with pytest.raises(ValueError, match="tiles must be a whole number from 1 to 4096, a range such as"):
        tile_limits(wrong)


# --- Cut --------------------------------------------------------------------------------------------------


def tiles_of(image: Any, limits: tuple[int, int] = (1, MAX_TILES), side: int = SIDE) -> list[Tile]:
    return list(cut(waiting(image), side, limits, torch.device("cpu")))


def test_tiles_are_the_pictures_own_pixels() -> None:
    picture = torch.from_numpy(photo(70, 90)).permute(2, 0, 1)
    small, *tiles = tiles_of(picture)
    assert (small.row, small.column) == (WHOLE, WHOLE) and small.pixels.shape == (3, SIDE, SIDE)
    assert len(tiles) == 9 and tiles[0].grid == (3, 3, 70, 90) and tiles[0].size == (70, 90)
    for tile in tiles:
        top, left = (start_of(k, 3, n, SIDE) for k, n in ((tile.row, 70), (tile.column, 90)))
        assert tile.pixels.dtype == torch.uint8
        assert torch.equal(tile.pixels, picture[:, top : top + SIDE, left : left + SIDE])
        assert tile.shown == (SIDE, SIDE)
    # The thumbnail is all of it, resized, and its last row goes on.
    assert small.shown == (24, 32)
    assert torch.equal(small.pixels[:, :24], resized(picture, (24, 32), 0, 0, 24, 32))
    assert (small.pixels[:, 24:] == small.pixels[:, 23:24]).all()


def test_a_picture_that_is_smaller_than_a_tile_is_not_enlarged() -> None:
    picture = torch.from_numpy(photo(20, 9)).permute(2, 0, 1)
    (tile,) = tiles_of(picture)
    assert tile.shown == (20, 9) and (tile.row, tile.column) == (0, 0)
    assert torch.equal(tile.pixels[:, :20, :9], picture)
    assert (tile.pixels[:, :20, 9:] == picture[:, :, 8:]).all()
    assert (tile.pixels[:, 20:] == tile.pixels[:, 19:20]).all()


@pytest.mark.parametrize("limits", [(1, MAX_TILES), (1, 4)])
def test_every_kind_of_input_gives_the_same_bits(limits: tuple[int, int], tmp_path: Path) -> None:
    array = photo(70, 90)
    path = tmp_path / "photo.png"
    Image.fromarray(array).save(path)
    expected = tiles_of(path, limits)
    tensor = torch.from_numpy(array).permute(2, 0, 1)
    kinds: dict[str, Any] = {
        "PIL": Image.open(path),
        "array": array,
        "flipped": np.flip(array, 1)[:, ::-1],
        "tensor": tensor,
        "batch": tensor[None],
        "list": [path],
        "floats": tensor.float() / 255,
    }
    for name, kind in kinds.items():
        for ours, theirs in zip(tiles_of(kind, limits), expected, strict=True):
            pixels = theirs.pixels.float().div(255) if theirs.pixels.dtype == torch.uint8 else theirs.pixels
            found = ours.pixels.float().div(255) if ours.pixels.dtype == torch.uint8 else ours.pixels
            assert torch.equal(found, pixels), name
            assert ours[1:] == theirs[1:]


def test_exotic_pictures(tmp_path: Path) -> None:
    """Turned by EXIF, transparent, deep, with a palette: what `read_image` makes of them, in tiles."""
    array = photo(40, 70)
    turned = tmp_path / "turned.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(array).save(turned, exif=exif)
    for picture in (turned, Image.fromarray(array).convert("P"), Image.fromarray(array).convert("CMYK")):
        tiles = tiles_of(picture)
        assert len(tiles) == tile_counts(waiting(picture), SIDE, (1, MAX_TILES))[0] == 7
    assert tiles_of(turned)[0].size == (70, 40) and tiles_of(turned)[1].grid == (3, 2, 70, 40)
    clear = Image.new("RGBA", (70, 40), (0, 0, 0, 0))
    assert all((tile.pixels == 255).all() for tile in tiles_of(clear)[1:])
    grey = Image.fromarray(np.full((40, 70), 65535, np.uint16))
    assert all((tile.pixels == 255).all() for tile in tiles_of(grey)[1:])


@pytest.mark.parametrize("size", [(120, 200), (500, 900), (17, 20), (301, 517)])
def test_resized_is_antialiased_bicubic(size: tuple[int, int]) -> None:
    picture = torch.from_numpy(photo(301, 517)).permute(2, 0, 1)
    whole = torch.nn.functional.interpolate(
        picture[None].float() / 255, size=size, mode="bicubic", antialias=True
    )[0].clamp(0, 1)
    top, left, bottom, right = 3, 5, size[0] - 1, size[1] - 2
    for source in (picture, Image.fromarray(photo(301, 517))):
        part = resized(source, size, top, left, bottom, right)
        torch.testing.assert_close(part, whole[:, top:bottom, left:right], rtol=0, atol=2e-4)


def test_several_pictures_are_numbered() -> None:
    small = np.zeros((10, 10, 3), np.uint8)
    tiles = tiles_of([small, photo(40, 40), small])
    assert [tile.picture for tile in tiles] == [0, 1, 1, 1, 1, 1, 2]
    batch = torch.zeros(2, 3, 40, 40)
    assert [tile.picture for tile in tiles_of(batch)] == [0] * 5 + [1] * 5
    assert tile_counts(waiting(batch), SIDE, (1, 4)) == [5, 5]


def test_refusals(tmp_path: Path) -> None:
    for wrong, words in (
        (np.zeros((1, 4000, 3), np.uint8), "4000 x 1 pixels, more than 100 to 1, too long for tiles; cut it"),
        ([], "the list of images is empty"),
        (tmp_path / "none.png", "none.png' does not exist"),
        ([torch.zeros(2, 3, 8, 8)], r"images\[0\] \(tensor\) is itself a batch"),
        (torch.full((3, 8, 8), float("nan")), "the tensor holds NaN"),
        (torch.full((3, 8, 8), 7.0), "floats must lie in"),
        (Image.new("F", (8, 8)), "holds floats, whose range is not known"),
        (7, "the int is no image"),
    ):
        with pytest.raises(ImageError, match=words):
            tiles_of(wrong)
    cut_short = io.BytesIO()
    Image.fromarray(photo(64, 64)).save(cut_short, "png")
    (tmp_path / "short.png").write_bytes(cut_short.getvalue()[:3000])
    with pytest.raises(ImageError, match=r"short.png' is truncated or damaged"):
        tiles_of(tmp_path / "short.png")
    huge = torch.zeros(1, dtype=torch.uint8).expand(3, 20_000, 20_000)
    with pytest.raises(
        ImageError, match=r"20000 x 20000 pixels, the limit is 128 million in tiles; allow few"
    ):
        tile_counts(waiting(huge), 256, (MAX_TILES, MAX_TILES))
