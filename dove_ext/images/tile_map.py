"""Where a picture's tokens went: its tiles over it, each with its count."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from dove_ext.images.files import to_pil
from dove_ext.images.overlay import FADED, PAPER
from dove_ext.images.sheet import ACCENT, FAINT, GAP, INK, MARGIN, caption_font, shorten
from dove_ext.images.sheet import PAPER as PAGE
from dove_ext.tokens.tiles import WHOLE, Place, Tiles

NARROWEST, WIDEST = 640, 2400  # of a panel, in pixels
CELL = 80  # of a tile in a panel, where there is room: a count of three digits can be read


def draw_tile_map(
    name: str, original: Tensor, decoded: Tensor, tiles: Tiles, lengths: Sequence[int], most: int
) -> Image.Image:
    """Draw one picture twice: with its tiles over it, and as it is decoded.

    Where a tile has few tokens the picture is pale and grey, where it has many it keeps its colours. A tile
    that was left out has no count.

    Args:
        name: caption.
        original: [3, H, W] in [0, 1], at the size that it has in its grid.
        decoded: likewise.
        tiles: of this picture alone.
        lengths: tokens of each tile.
        most: the most tokens of a tile.

    Returns:
        PIL.Image.Image: RGB.
    """
    picture = tiles.pictures[0]
    width = min(
        WIDEST, max(NARROWEST, CELL * picture.columns, CELL * picture.rows * picture.width // picture.height)
    )
    height = max(1, round(width * picture.height / picture.width))
    sheet = Image.new("RGB", (2 * width + GAP + 2 * MARGIN, height + 2 * MARGIN + 48), PAGE)
    counts = dict(zip(tiles.places, lengths, strict=True))
    mapped = to_pil(_faded(original, tiles, counts, most))[0].resize(
        (width, height), Image.Resampling.BICUBIC
    )
    _draw_counts(mapped, tiles, counts, most)
    sheet.paste(mapped, (MARGIN, MARGIN))
    shown = to_pil(decoded)[0].resize((width, height), Image.Resampling.BICUBIC)
    sheet.paste(shown, (MARGIN + width + GAP, MARGIN))
    draw = ImageDraw.Draw(sheet)
    small = counts.get(Place(0, WHOLE, WHOLE))
    title = f"{sum(lengths)} tokens in {picture.columns} x {picture.rows} tiles"
    title += "" if small is None else f" and a thumbnail of {small}"
    error = (decoded.double() - original.double()).square().mean()
    decibel = f"{-10 * error.log10():.1f} dB" if error else "the same"
    top = MARGIN + height + 8
    draw.text((MARGIN, top), title, fill=ACCENT, font=caption_font(18))
    draw.text((MARGIN + width + GAP, top), f"decoded, {decibel}", fill=INK, font=caption_font(18))
    font = caption_font(14)
    draw.text((MARGIN, top + 24), shorten(draw, name, font, False, width), fill=FAINT, font=font)
    return sheet


def _faded(image: Tensor, tiles: Tiles, counts: dict[Place, int], most: int) -> Tensor:
    strength = torch.zeros(image.shape[1:])
    for place, box in _cells(tiles).items():
        strength[box[1] : box[3], box[0] : box[2]] = counts.get(place, 0) / most
    image = image.float().cpu()
    grey = image.mean(0, keepdim=True)
    pale = grey + FADED * (PAPER - grey)
    return pale + strength.sqrt() * (image - pale)


def _cells(tiles: Tiles) -> dict[Place, tuple[int, int, int, int]]:
    """Left, top, right and bottom of what each tile of the grid shows, up to the middle of what it shares."""
    picture = tiles.pictures[0]
    edges = []
    for count, length, axis in ((picture.rows, picture.height, 0), (picture.columns, picture.width, 1)):
        boxes = [tiles.box(Place(0, *((k, 0) if axis == 0 else (0, k)))) for k in range(count)]
        middles = [(a[axis + 2] + b[axis]) // 2 for a, b in pairwise(boxes)]
        edges.append([0, *middles, length])
    return {
        Place(0, row, column): (edges[1][column], edges[0][row], edges[1][column + 1], edges[0][row + 1])
        for row in range(picture.rows)
        for column in range(picture.columns)
    }


def _draw_counts(mapped: Image.Image, tiles: Tiles, counts: dict[Place, int], most: int) -> None:
    """Lines around the tiles, and in the corner of each its count, the bluer the more it has."""
    draw = ImageDraw.Draw(mapped)
    scale = mapped.width / tiles.pictures[0].width
    for place, box in _cells(tiles).items():
        left, top, right, bottom = (round(edge * scale) for edge in box)
        draw.rectangle((left, top, right - 1, bottom - 1), outline=ACCENT)
        if place not in counts:
            continue
        share = (counts[place] / most) ** 0.5
        fill = tuple(round(page + share * (ink - page)) for page, ink in zip(PAGE, ACCENT, strict=True))
        font = caption_font(max(9, min(22, (right - left) // 5)))
        at, text = (left + 6, top + 5), str(counts[place])
        x0, y0, x1, y1 = draw.textbbox(at, text, font=font)
        draw.rectangle((left, top, x1 + x0 - left, y1 + y0 - top), fill=fill, outline=ACCENT)
        draw.text(at, text, fill=PAGE if share > 0.5 else INK, font=font)
