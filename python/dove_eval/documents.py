"""Documents that are drawn from a seed, with the text and the place of every line. No picture is read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from dove_eval.typesetting import Colour, Line, Sheet
from dove_ext.images.drawn import cloud

WHITE, BLACK = (255, 255, 255), (0, 0, 0)
PAPERS: tuple[Colour, ...] = (WHITE, WHITE, (250, 247, 238), (242, 244, 247))
INKS: tuple[Colour, ...] = (BLACK, (30, 30, 34), (20, 28, 60))
SLIDES: tuple[tuple[Colour, Colour], ...] = (
    (WHITE, (24, 32, 48)), ((246, 242, 232), (60, 30, 20)), ((18, 32, 62), (240, 244, 250)),
    ((32, 34, 38), (250, 220, 120)), ((0, 92, 84), WHITE),
)  # fmt: skip
ACCENTS: tuple[Colour, ...] = ((0, 94, 184), (178, 34, 52), (0, 122, 90), (120, 60, 150))


@dataclass(frozen=True)
class Document:
    """A picture and all text on it.

    Attributes:
        kind: of `KINDS`.
        seed: 0 or above.
        picture: RGB.
        lines: from top to bottom.
    """

    kind: str
    seed: int
    picture: Image.Image
    lines: tuple[Line, ...]

    @property
    def name(self) -> str:
        """Unique among documents."""
        return f"{self.kind}-{self.seed:03d}"


# --- Kinds ------------------------------------------------------------------------------------------------


def _page(sheet: Sheet, size: int) -> None:
    """Type from margin to margin: a heading, then paragraphs."""
    width, height = sheet.picture.size
    margin, ink = 64, sheet.pick(INKS)
    large, step = size * 8 // 5, int(size * 1.35)
    sheet.write(margin, margin, sheet.text(large, width // 2), large, ink)
    y, left = margin + 2 * large, 6
    while y + size <= height - margin:
        last = left == 1
        share = sheet.random.uniform(0.3, 0.9) if last else 1.0
        sheet.write(margin, y, sheet.text(size, int(share * (width - 2 * margin))), size, ink)
        y += step + (step // 2 if last else 0)
        left = int(sheet.random.integers(5, 12)) if last else left - 1


def _slide(sheet: Sheet) -> None:
    """A title, points of 40-pixel type, a footer; on a light or a dark ground."""
    width, height = sheet.picture.size
    ground, ink = SLIDES[int(sheet.random.integers(len(SLIDES)))]
    accent = sheet.pick(ACCENTS)
    sheet.draw.rectangle((0, 0, width, height), ground)
    sheet.draw.rectangle((0, 0, width, 14), accent)
    sheet.write(64, 56, sheet.text(56, 820), 56, ink)
    y = 170
    while y < height - 130:
        sheet.draw.ellipse((68, y + 14, 82, y + 28), accent)
        for row in range(int(sheet.random.integers(1, 3))):
            if row and y + 52 > height - 130:
                break
            y += 52 * row
            sheet.write(110, y, sheet.text(40, int(sheet.random.uniform(300, 820))), 40, ink)
        y += 74
    sheet.write(64, height - 52, sheet.words(2, 4), 24, ink)
    sheet.write(width - 64, height - 52, str(sheet.random.integers(1, 90)), 24, ink, right=True)


def _screenshot(sheet: Sheet) -> None:
    """A window: title, menu, a list at the left, text, a table and buttons."""
    width, height = sheet.picture.size
    accent, ink, left = sheet.pick(ACCENTS), (32, 34, 38), 196
    sheet.draw.rectangle((0, 0, width, height), WHITE)
    sheet.draw.rectangle((0, 0, width, 36), accent)
    sheet.write(14, 7, sheet.words(2, 4), 20, WHITE)
    for k in range(3):
        sheet.draw.ellipse((width - 86 + 28 * k, 12, width - 74 + 28 * k, 24), WHITE)
    sheet.draw.rectangle((0, 36, width, 68), (243, 243, 243))
    for k in range(5):
        sheet.write(14 + 130 * k, 43, sheet.words(1, 1), 16, ink)
    sheet.draw.rectangle((0, 68, left - 16, height), (228, 232, 238))
    for k in range(int(sheet.random.integers(6, 12))):
        sheet.draw.rectangle((14, 88 + 34 * k, 26, 100 + 34 * k), accent)
        sheet.write(36, 84 + 34 * k, sheet.text(16, left - 70), 16, ink)
    inner = width - left - 20
    sheet.write(left, 80, sheet.text(26, inner - 60), 26, ink)
    for k in range(int(sheet.random.integers(3, 7))):
        sheet.write(left, 126 + 25 * k, sheet.text(17, int(sheet.random.uniform(0.5, 1) * inner)), 17, ink)
    for row in range(int(sheet.random.integers(2, 5)) + 1):
        y = 290 + 32 * row
        sheet.draw.line((left, y, width - 20, y), (200, 204, 210))
        for column in range(4):
            text = sheet.text(16, inner // 5) if row == 0 or column == 0 else sheet.price()
            sheet.write(left + 8 + inner // 4 * column, y + 7, text, 16, ink)
    for k in range(2):
        x = width - 140 * (k + 1)
        sheet.draw.rounded_rectangle((x, height - 46, x + 120, height - 12), 7, accent)
        sheet.write(x + 12, height - 40, sheet.text(18, 90), 18, WHITE)


def _form(sheet: Sheet) -> None:
    """Labels, boxes with answers in them, and boxes to tick."""
    width, height = sheet.picture.size
    ink, answer, margin = sheet.pick(INKS), (16, 40, 130), 36
    sheet.write(margin, 32, sheet.text(32, width - 2 * margin), 32, ink)
    sheet.draw.line((margin, 80, width - margin, 80), ink, 3)
    y = 96
    while y + 72 < height - 96:
        columns = int(sheet.random.integers(1, 3))
        wide = (width - 2 * margin - 20 * (columns - 1)) // columns
        for column in range(columns):
            left = margin + column * (wide + 20)
            sheet.write(left, y, sheet.text(16, wide * 2 // 3), 16, ink)
            sheet.draw.rectangle((left, y + 23, left + wide, y + 59), None, (120, 124, 130), 2)
            if sheet.random.random() < 0.85:
                sheet.write(left + 10, y + 29, sheet.text(22, int(wide * 0.8)), 22, answer)
        y += 76
    for k in range(4):
        left, top = margin + width // 2 * (k % 2), y + 10 + 38 * (k // 2)
        sheet.draw.rectangle((left, top, left + 20, top + 20), None, ink, 2)
        if sheet.random.random() < 0.5:
            sheet.draw.line((left + 4, top + 10, left + 9, top + 16, left + 18, top + 2), answer, 3)
        sheet.write(left + 32, top, sheet.text(18, width // 2 - 110), 18, ink)


def _receipt(sheet: Sheet) -> None:
    """A narrow slip: a name, goods at the left, prices at the right, a sum and bars."""
    width, height = sheet.picture.size
    ink: Colour = (40, 40, 44)
    sheet.write(32, 32, sheet.text(32, width - 96), 32, ink)
    sheet.write(32, 80, sheet.text(20, width - 80), 20, ink)
    y = 130
    for _ in range(int(sheet.random.integers(8, 12))):
        sheet.write(32, y, sheet.text(22, 240), 22, ink)
        sheet.write(width - 32, y, sheet.price(), 22, ink, right=True)
        y += 38
    for x in range(32, width - 32, 12):
        sheet.draw.line((x, y + 4, x + 6, y + 4), ink, 2)
    sheet.write(32, y + 16, sheet.words(1, 1), 30, ink)
    sheet.write(width - 32, y + 16, sheet.price(), 30, ink, right=True)
    x = 64
    while x < width - 64:
        wide = int(sheet.random.integers(1, 5))
        sheet.draw.rectangle((x, height - 110, x + wide - 1, height - 60), ink)
        x += wide + int(sheet.random.integers(2, 6))
    sheet.write(64, height - 48, str(sheet.random.integers(10**9, 10**10)), 20, ink)


def _terminal(sheet: Sheet) -> None:
    """A terminal: light and coloured type of 18 pixels on black."""
    width, height = sheet.picture.size
    sheet.draw.rectangle((0, 0, width, height), (12, 14, 18))
    inks: tuple[Colour, ...] = ((220, 222, 226), (120, 220, 120), (240, 200, 90), (110, 170, 250))
    for y in range(24, height - 30, 27):
        sheet.write(24, y, sheet.text(18, int(sheet.random.uniform(0.2, 0.9) * width)), 18, sheet.pick(inks))


def _poster(sheet: Sheet) -> None:
    """Coloured type straight on a ground as busy as a photograph."""
    width, height = sheet.picture.size
    ground = cloud(sheet.random, width // 4).resize((width, width), Image.Resampling.BICUBIC)
    ground = Image.blend(ground, Image.new("RGB", ground.size, (128, 128, 128)), 0.4)
    sheet.picture.paste(ground.crop((0, 0, width, height)))
    inks: tuple[Colour, ...] = (WHITE, (255, 230, 60), (20, 10, 60), (255, 120, 200))
    y = 40
    while y < height - 60:
        size = int(sheet.random.choice([24, 32, 44]))
        sheet.write(
            48, y, sheet.text(size, int(sheet.random.uniform(0.4, 0.85) * width)), size, sheet.pick(inks)
        )
        y += size * 3 // 2


PAGE, SLIDE, WINDOW = (1024, 1280), (1024, 768), (768, 512)
_DRAW: dict[str, tuple[tuple[int, int], Callable[[Sheet], None]]] = {
    "page-20": (PAGE, lambda sheet: _page(sheet, 20)),
    "page-28": (PAGE, lambda sheet: _page(sheet, 28)),
    "slide": (SLIDE, _slide),
    "screenshot": (WINDOW, _screenshot),
    "form": ((512, 768), _form),
    "receipt": ((440, 760), _receipt),
    "page-12": (WINDOW, lambda sheet: _page(sheet, 12)),
    "terminal": (WINDOW, _terminal),
    "poster": (WINDOW, _poster),
    "screen": ((1280, 800), _screenshot),
}
KINDS = tuple(_DRAW)
"""Dense pages of 20- and 28-pixel type, slides, screenshots, forms, receipts; and harder ones: pages of
12-pixel type, terminals (light type on black), posters (coloured type on a ground like a photograph); and
the window of the screenshots on a screen of 1280 x 800."""


def draw(kind: str, seed: int, fonts: Sequence[Path] = ()) -> Document:
    """A document of a kind; the same for the same seed and fonts.

    Args:
        kind: of `KINDS`.
        seed: 0 or above; each gives another document.
        fonts: files of TrueType or OpenType fonts; seeds take Pillow's own and these by turns.

    Raises:
        ValueError: if there is no such kind.
        OSError: if a font cannot be read.
    """
    if kind not in _DRAW:
        raise ValueError(f"there is no kind {kind!r}; choose from {', '.join(KINDS)}")
    size, body = _DRAW[kind]
    random = np.random.default_rng([seed, KINDS.index(kind)])
    choice: list[Path | None] = [None, *fonts]
    paper = PAPERS[int(random.integers(len(PAPERS)))]
    sheet = Sheet(random, Image.new("RGB", size, paper), choice[seed % len(choice)])
    body(sheet)
    return Document(kind, seed, sheet.picture, tuple(sheet.lines))
