"""The picture that `dove reconstruct` draws: what an image looks like after ever more tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from dove_ext.images.files import to_pil
from dove_ext.images.overlay import overlay
from dove_ext.metrics.pixel import psnr

TILE = 256
MARGIN = 32
GAP = 10
ROW_GAP = 22
GROUP_GAP = 34  # sets the original and the chosen length apart from the fixed ones
CAPTION = 54  # height below a tile
FRAME = 5

PAPER = (255, 255, 255)
INK = (28, 32, 38)
FAINT = (122, 130, 142)
ACCENT = (0, 110, 230)

_Font = ImageFont.ImageFont | ImageFont.FreeTypeFont


@dataclass(frozen=True)
class Row:
    """One image of a sheet; all tensors are [3, S, S] in [0, 1].

    Attributes:
        name: caption of the original.
        original: what was encoded.
        fixed: reconstructions at lengths that are the same for every image, as (count, image).
        chosen: reconstruction at the length that the image was given, as (count, image).
        query: of a text query the text: `chosen` is for it, and `fixed` is one entry, for the query "null".
        relevance: of a model with a relevance map where it says that the query is, [h, w]; for all rows of a
            sheet or for none.
    """

    name: str
    original: Tensor
    fixed: Sequence[tuple[int, Tensor]]
    chosen: tuple[int, Tensor]
    query: str | None = None
    relevance: Tensor | None = None

    def decibel(self, image: Tensor) -> float:
        """PSNR of one of the reconstructions; infinite if it equals the original."""
        return psnr(image[None].double(), self.original[None].double(), black=0).item()


def draw_sheet(rows: Sequence[Row]) -> Image.Image:
    """Draw one sheet: a row an image, with the original, the fixed lengths, and the chosen one in a frame.

    Where there are relevance maps, they are drawn over the original once more, beside it.

    Args:
        rows: at least one, all with the same number of fixed lengths.

    Returns:
        PIL.Image.Image: RGB.
    """
    columns = len(rows[0].fixed)
    width = 2 * MARGIN + (columns + 2) * TILE + max(columns - 1, 0) * GAP + (2 if columns else 1) * GROUP_GAP
    width += 0 if rows[0].relevance is None else TILE + GAP
    # The last caption's own space stands in for part of the lower margin.
    height = MARGIN + len(rows) * (TILE + CAPTION) + (len(rows) - 1) * ROW_GAP + MARGIN // 2
    sheet = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(sheet)
    for index, row in enumerate(rows):
        _draw_row(sheet, draw, row, MARGIN + index * (TILE + CAPTION + ROW_GAP))
    return sheet


def _draw_row(sheet: Image.Image, draw: ImageDraw.ImageDraw, row: Row, top: int) -> None:
    left = MARGIN
    sheet.paste(_tile(row.original), (left, top))
    _caption(draw, left, top, "original", row.name, INK)
    if row.relevance is not None:
        left += TILE + GAP
        sheet.paste(_tile(overlay(row.original[None], row.relevance[None])), (left, top))
        _caption(draw, left, top, "map", row.query or "", INK, keep_start=True)
    left += TILE + GROUP_GAP
    for count, image in row.fixed:
        sheet.paste(_tile(image), (left, top))
        title = _tokens(count) + (", null" if row.query is not None else "")
        _caption(draw, left, top, title, _decibel(row, image), INK)
        left += TILE + GAP
    if row.fixed:
        left += GROUP_GAP - GAP
    count, image = row.chosen
    box = (left - FRAME, top - FRAME, left + TILE + FRAME - 1, top + TILE + FRAME - 1)
    draw.rounded_rectangle(box, radius=FRAME, fill=ACCENT)
    sheet.paste(_tile(image), (left, top))
    if row.query is None:
        _caption(draw, left, top, f"{_tokens(count)}, chosen", _decibel(row, image), ACCENT)
    else:
        asked = f"{_decibel(row, image)}, {row.query}"
        _caption(draw, left, top, f"{_tokens(count)}, query", asked, ACCENT, keep_start=True)


def _caption(
    draw: ImageDraw.ImageDraw,
    left: int,
    top: int,
    text: str,
    small_print: str,
    colour: tuple[int, int, int],
    *,
    keep_start: bool = False,
) -> None:
    top += TILE + FRAME + 4
    draw.text((left, top), text, fill=colour, font=caption_font(18))
    font = caption_font(14)
    draw.text((left, top + 24), shorten(draw, small_print, font, keep_start), fill=FAINT, font=font)


def shorten(draw: ImageDraw.ImageDraw, text: str, font: _Font, keep_start: bool, width: int = TILE) -> str:
    """Fit a text under a picture, keeping its start or, of a file name, its end: numbers and suffixes."""
    # The font that comes with Pillow knows Latin letters; a question mark beats an empty box.
    text = " ".join(text.split()) if keep_start else text  # a query may have lines
    text = text.encode("latin-1", "replace").decode("latin-1")
    if draw.textlength(text, font=font) <= width:
        return text
    while text and draw.textlength("..." + text, font=font) > width:
        text = text[:-1] if keep_start else text[1:]
    return text + "..." if keep_start else "..." + text


def _tile(image: Tensor) -> Image.Image:
    picture = to_pil(image)[0]
    return picture if picture.size == (TILE, TILE) else picture.resize((TILE, TILE), Image.Resampling.BICUBIC)


def _tokens(count: int) -> str:
    return f"{count} token{'s' * (count != 1)}"


def _decibel(row: Row, image: Tensor) -> str:
    return f"{row.decibel(image):.1f} dB"


def caption_font(size: int) -> _Font:
    """The font of captions, of about this height in pixels."""
    try:
        return ImageFont.load_default(size)
    except (TypeError, ImportError, OSError):  # Pillow before 10.1, or built without FreeType: a bitmap font
        return ImageFont.load_default()
