"""Tiles out of pictures of any size: one picture at a time, and of that only what a tile needs as floats."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dove_ext.devices import send
from dove_ext.errors import ImageError
from dove_ext.fork import lead_threads
from dove_ext.images.files import open_image, upright_rgb
from dove_ext.images.prepare import (
    MAX_ASPECT,
    ImageLike,
    Images,
    check_ranges,
    describe_image,
    to_batch,
    unit,
)
from dove_ext.images.tiles import Grid, choose_grid
from dove_ext.tokens.tiles import MOST_PIXELS, WHOLE, TiledPicture, start_of

_BAND = 8  # rows that are resized at once: of a scan of 12,000 columns to 256 pixels, 27 MB of floats


class Waiting(NamedTuple):
    """Pictures of one size that are not read yet.

    Attributes:
        name: how an error calls them.
        image: a path or a PIL image of one, or a tensor [number, 3, H, W].
        number: how many.
        height: in pixels; of a file whose EXIF block turns it, the width.
        width: likewise.
    """

    name: str
    image: Tensor | Image.Image | str | os.PathLike[str]
    number: int
    height: int
    width: int


class Tile(NamedTuple):
    """A piece of a picture.

    Attributes:
        pixels: [3, S, S], uint8, or float32 in [0, 1]; behind the picture's own its border goes on.
        picture: its number.
        row: in the grid; `tokens.tiles.WHOLE` of a thumbnail.
        column: likewise.
        grid: of its picture.
        size: height and width of the picture as it was given.
        shown: rows and columns of `pixels` that are the picture's own.
    """

    pixels: Tensor
    picture: int
    row: int
    column: int
    grid: Grid
    size: tuple[int, int]
    shown: tuple[int, int]


def waiting(images: Images) -> list[Waiting]:
    """What a caller has, as pictures that are to be read one after the other; of files the header is read.

    Args:
        images: as for `prepare_images`.

    Raises:
        ImageError: as `prepare_images`, except for what is only found as a picture is decoded.
    """
    single = not isinstance(images, list | tuple)
    listed: Sequence[object] = [images] if single else images  # type: ignore[assignment]
    if not listed:
        raise ImageError("the list of images is empty; give at least one image")
    found = []
    for index, image in enumerate(listed):
        name = describe_image(image, None if single else index)
        if not single and isinstance(image, Tensor | np.ndarray) and image.ndim == 4:
            raise ImageError(f"{name} is itself a batch; list single images, or pass the batch alone")
        if isinstance(image, str | os.PathLike):
            with open_image(image) as picture:
                width, height = picture.size
            found.append(Waiting(name, image, 1, height, width))
        elif isinstance(image, Image.Image):
            found.append(Waiting(name, image, 1, image.height, image.width))
        else:
            batch = to_batch(image, name)
            found.append(Waiting(name, batch, len(batch), *batch.shape[2:]))
        height, width = found[-1].height, found[-1].width
        if max(height, width) > MAX_ASPECT * min(height, width) > 0:
            raise ImageError(
                f"{name} has {width} x {height} pixels, more than {MAX_ASPECT} to 1, too long for tiles; "
                "cut it first"
            )
    return found


def tile_counts(pictures: Sequence[Waiting], side: int, limits: tuple[int, int]) -> list[int]:
    """How many tiles each picture will have, with its thumbnail.

    Raises:
        ImageError: if one is too large for its grid to be put together again.
    """
    counts: list[int] = []
    for name, _, number, height, width in pictures:
        grid = choose_grid(max(1, height), max(1, width), side, limits)
        if grid.height * grid.width > MOST_PIXELS:
            raise ImageError(
                f"{name} has {width} x {height} pixels, the limit is {MOST_PIXELS / 1e6:.0f} million in "
                "tiles; allow fewer tiles, such as tiles=12"
            )
        counts += [grid.tiles + (grid.tiles > 1)] * number
    return counts


def cut(
    pictures: Sequence[Waiting], side: int, limits: tuple[int, int], device: torch.device
) -> Iterator[Tile]:
    """The tiles of all pictures: of each its thumbnail, if it has more than one tile, then row by row.

    A picture is read when its first tile is asked for, and forgotten behind its last.

    Args:
        pictures: from `waiting`.
        side: S of a tile.
        limits: the fewest and the most tiles of a picture (`choose_grid`).
        device: where the tiles are wanted.

    Raises:
        ImageError: if a picture cannot be decoded, or has values out of range.
    """
    lead_threads()
    number = 0
    for picture in pictures:
        for source in _sources(picture):
            size = _size(source)
            grid = choose_grid(*size, side, limits)
            places = [(row, column) for row in range(grid.rows) for column in range(grid.columns)]
            for row, column in [(WHOLE, WHOLE)] * (len(places) > 1) + places:
                small = row == WHOLE
                at = choose_grid(*size, side, (1, 1)) if small else grid
                pixels, shown = _tile(source, at, side, max(row, 0), max(column, 0))
                yield Tile(send(pixels, device), number, row, column, grid, size, shown)
            number += 1


_Source = Tensor | Image.Image


def _sources(picture: Waiting) -> Iterator[_Source]:
    """Each of them as a tensor [3, H, W] or a PIL image of mode RGB."""
    image = picture.image
    if isinstance(image, Tensor):
        if image.is_floating_point():
            low_high = torch.stack(image.detach().aminmax())
            check_ranges([(picture.name, low_high.tolist())])
        yield from image
    elif isinstance(image, Image.Image):
        yield upright_rgb(image, picture.name)
    else:
        with open_image(image) as opened:
            yield upright_rgb(opened, picture.name)


def _size(source: _Source) -> tuple[int, int]:
    if isinstance(source, Tensor):
        return source.shape[1], source.shape[2]
    return source.height, source.width


def _crop(source: _Source, top: int, left: int, bottom: int, right: int) -> Tensor:
    """Pixels [3, bottom - top, right - left] as they are."""
    if isinstance(source, Tensor):
        return source[:, top:bottom, left:right]
    part = np.array(source.crop((left, top, right, bottom)))
    return torch.from_numpy(part).permute(2, 0, 1)


def _tile(source: _Source, grid: Grid, side: int, row: int, column: int) -> tuple[Tensor, tuple[int, int]]:
    """A tile [3, side, side], and how many of its rows and columns are the picture's."""
    top = start_of(row, grid.rows, grid.height, side)
    left = start_of(column, grid.columns, grid.width, side)
    bottom, right = min(top + side, grid.height), min(left + side, grid.width)
    if _size(source) == (grid.height, grid.width):
        pixels = _crop(source, top, left, bottom, right)
        if pixels.is_floating_point():
            pixels = pixels.float().clamp(0, 1)
    else:
        pixels = resized(source, (grid.height, grid.width), top, left, bottom, right)
    shown = bottom - top, right - left
    rows, columns = (torch.arange(side, device=pixels.device).clamp_max(n - 1) for n in shown)
    return pixels[:, rows][:, :, columns].contiguous(), shown


def in_grid(image: ImageLike, picture: TiledPicture) -> Tensor:
    """A picture as its tiles hold it, to be compared with what they decode to.

    Args:
        image: what was encoded.
        picture: what its tokens say of it.

    Returns:
        Tensor: float32 [3, height, width] in [0, 1].

    Raises:
        ImageError: if it cannot be read.
    """
    source = next(_sources(waiting(image)[0]))
    size = picture.height, picture.width
    if _size(source) == size:
        return unit(_crop(source, 0, 0, *size)).float().clamp(0, 1)
    return resized(source, size, 0, 0, *size)


def resized(source: _Source, size: tuple[int, int], top: int, left: int, bottom: int, right: int) -> Tensor:
    """A part of a picture that is resized as a whole by antialiased bicubic interpolation.

    It equals that part of `torch.nn.functional.interpolate(mode="bicubic", antialias=True)`, to rounding, and
    reads and converts no more than the part depends on, a band at a time.

    Args:
        source: [3, H, W], uint8 or float in [0, 1]; or a PIL image of mode RGB.
        size: height and width of the whole that is made of it.
        top: the part of that, in its pixels.
        left: likewise.
        bottom: behind its last row.
        right: behind its last column.

    Returns:
        Tensor: float32 [3, bottom - top, right - left] in [0, 1].
    """
    height, width = _size(source)
    first, across = _filter(width, size[1], left, right)
    parts = []
    for start in range(top, bottom, _BAND):
        above, down = _filter(height, size[0], start, min(bottom, start + _BAND))
        band = _crop(source, above, first, above + down.shape[1], first + across.shape[1])
        down, across = down.to(band.device), across.to(band.device)
        parts.append(torch.stack([down @ unit(channel).float() @ across.T for channel in band]))
    return torch.cat(parts, dim=1).clamp(0, 1)  # the filter overshoots at edges


def _filter(length: int, size: int, start: int, stop: int) -> tuple[int, Tensor]:
    """What pixels start..stop-1 of `size` are made of among `length`: the first of these, and weights.

    Returns:
        (int, Tensor): float32 [stop - start, n], of the n pixels from the first on.
    """
    scale = length / size
    stretch = max(scale, 1.0)
    centre = (torch.arange(start, stop, dtype=torch.float64) + 0.5) * scale
    first = max(0, int(centre[0] - 2 * stretch))
    behind = min(length, int(centre[-1] + 2 * stretch) + 1)
    x = ((torch.arange(first, behind, dtype=torch.float64) + 0.5 - centre[:, None]) / stretch).abs()
    near, far = (1.5 * x - 2.5) * x * x + 1, ((-0.5 * x + 2.5) * x - 4) * x + 2  # Keys' cubic, a = -1/2
    weights = torch.where(x < 1, near, torch.where(x < 2, far, torch.zeros_like(x)))
    return first, (weights / weights.sum(1, keepdim=True)).float()
