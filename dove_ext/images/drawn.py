"""Pictures that are not photographs, drawn from a seed: print, charts, patterns, points. No files are read.

A stop that is learned from photographs knows nothing of a word on a white page. Half of the kinds are for
training (`TRAINED`), the other half for measuring only (`HELD_BACK`): a model that has seen `words` and
`table` is asked about `paragraph` and `screenshot`.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

Random = np.random.Generator
Array = npt.NDArray[np.generic]
Colour = tuple[int, int, int]

WORDS = """
the of and to in a is that for it was on are as with his they at be this from have or by one had not but
what all were when we there can an your which their said if do will each about how up out them then she many
some so these would other into has more her two like him see time could no make than first been its who now
people my made over did down only way find use may water long little very after words called just where most
know
""".split()  # noqa: SIM905 (fifteen lines of quotes)


# --- Parts ------------------------------------------------------------------------------------------------


def _colour(random: Random) -> Colour:
    """Any colour, often a saturated one or a grey."""
    kind = random.integers(3)
    values = random.integers(0, 256, 3)
    if kind == 1:
        values = random.choice([0, 255], 3)
    elif kind == 2:
        values = np.repeat(values[:1], 3)
    return int(values[0]), int(values[1]), int(values[2])


def _pair(random: Random) -> tuple[Colour, Colour]:
    """A ground, white or black in half of the cases, and a colour that can be told from it."""
    ground = [(255, 255, 255), (0, 0, 0), _colour(random), _colour(random)][random.integers(4)]
    while True:
        ink = _colour(random)
        if max(abs(a - b) for a, b in zip(ground, ink, strict=True)) >= 80:
            return ground, ink


def _page(size: int, ground: Colour) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    image = Image.new("RGB", (size, size), ground)
    return image, ImageDraw.Draw(image)


def _font(random: Random, low: int, high: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Of a height in pixels between these two, but never one that cannot be drawn."""
    return ImageFont.load_default(max(6, int(random.integers(low, high + 1))))


def _sentence(random: Random, words: int) -> str:
    text = " ".join(random.choice(WORDS, words))
    return [text, text.upper(), text.capitalize(), f"{random.integers(10**6)} {text}"][random.integers(4)]


def _slanted(random: Random, image: Image.Image, ground: Colour) -> Image.Image:
    """The same, upright or leaning like an italic."""
    lean = float(random.choice([0.0, 0.0, 0.25]))
    shift = -lean * image.height / 2
    affine = (1, lean, shift, 0, 1, 0)
    return image.transform(
        image.size, Image.Transform.AFFINE, affine, Image.Resampling.BICUBIC, fillcolor=ground
    )


def _place(random: Random, size: int, margin: int = 0) -> tuple[int, int]:
    x, y = random.integers(margin, size - margin, 2)
    return int(x), int(y)


def _waves(random: Random, size: int) -> npt.NDArray[np.float64]:
    """A phase that grows by one a period: any direction, any period from 2 pixels to the whole side."""
    angle = random.choice([0.0, 0.5, 0.25, random.random()]) * math.pi
    period = float(np.exp(random.uniform(math.log(2), math.log(size))))
    y, x = np.mgrid[:size, :size]
    phase: npt.NDArray[np.float64] = (x * math.cos(angle) + y * math.sin(angle)) / period + random.random()
    return phase


def _blend(share: npt.NDArray[np.floating], ground: Colour, ink: Colour) -> Image.Image:
    """From `ground` where the share is 0 to `ink` where it is 1."""
    mixed = np.asarray(ground) + share.clip(0, 1)[..., None] * (np.asarray(ink) - np.asarray(ground))
    return Image.fromarray(mixed.round().astype(np.uint8))


def cloud(random: Random, size: int) -> Image.Image:
    """Coloured noise whose power falls with frequency as a photograph's does."""
    fy, fx = np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)[None]
    fall = 1 / np.maximum(np.hypot(fy, fx), 1 / size)
    planes = [
        np.fft.irfft2(np.fft.rfft2(random.standard_normal((size, size))) * fall, (size, size))
        for _ in range(3)
    ]
    shared = planes[0]
    picture = np.stack([0.7 * shared + 0.3 * plane for plane in planes], axis=-1)
    picture = 128 + 50 * picture / picture.std()
    return Image.fromarray(picture.clip(0, 255).astype(np.uint8))


# --- Print ------------------------------------------------------------------------------------------------


def _words(random: Random, size: int) -> Image.Image:
    ground, ink = _pair(random)
    image, draw = _page(size, ground)
    font = _font(random, max(8, size // 21), size // 4)
    for _ in range(random.integers(1, 4)):
        x, y = _place(random, size)
        bold = int(random.integers(2))
        draw.text((x // 2, y * 3 // 4), _sentence(random, 1), ink, font, stroke_width=bold)
    return _slanted(random, image, ground)


def _terminal(random: Random, size: int) -> Image.Image:
    image, draw = _page(size, (0, 0, 0))
    step = int(random.integers(10, 18))
    for row in range(random.integers(1, size // step)):
        text = f"$ {_sentence(random, int(random.integers(1, 8)))}"
        draw.text(
            (4, row * step),
            text,
            _colour(random) if row % 3 == 0 else (200, 200, 200),
            _font(random, step - 3, step - 3),
        )
    return image


def _paragraph(random: Random, size: int) -> Image.Image:
    ground, ink = _pair(random)
    image, draw = _page(size, ground)
    height = int(random.integers(max(7, size // 25), max(10, size // 10)))
    font = _font(random, height, height)
    for y in range(size // 16, size - height, int(height * 1.3)):
        draw.text((size // 16, y), _sentence(random, 1 + int(1.6 * size / height / 4)), ink, font)
    return _slanted(random, image, ground)


def _screenshot(random: Random, size: int) -> Image.Image:
    image, draw = _page(size, (236, 236, 236))
    bar, accent = size // 14, _colour(random)
    draw.rectangle((0, 0, size, bar), accent)
    draw.text((6, 2), _sentence(random, 2), (255, 255, 255), _font(random, bar - 6, bar - 6))
    draw.rectangle((0, bar, size // 4, size), (220, 224, 228))
    for row in range(random.integers(3, 9)):
        y = bar + 8 + row * size // 12
        draw.text((6, y), _sentence(random, 1), (60, 60, 60), _font(random, 9, 11))
        draw.text((size // 4 + 10, y), _sentence(random, 4), (20, 20, 20), _font(random, 9, 12))
    for _ in range(random.integers(1, 4)):
        x, y = _place(random, size, size // 4)
        draw.rounded_rectangle((x, y, x + size // 5, y + size // 12), 4, accent, (120, 120, 120))
        draw.text((x + 5, y + 3), "OK", (255, 255, 255), _font(random, 10, 12))
    return image


def _table(random: Random, size: int) -> Image.Image:
    ground, ink = _pair(random)
    image, draw = _page(size, ground)
    rows, columns = int(random.integers(2, 14)), int(random.integers(2, 7))
    font = _font(random, 7, max(8, min(16, size // int(rows) - 4)))
    for r in range(rows + 1):
        draw.line((0, r * size // rows, size, r * size // rows), ink)
    for c in range(columns + 1):
        draw.line((c * size // columns, 0, c * size // columns, size), ink)
    for r in range(rows):
        for c in range(columns):
            if random.random() < 0.7:
                draw.text(
                    (c * size // columns + 3, r * size // rows + 2), str(random.integers(10000)), ink, font
                )
    return image


def _barcode(random: Random, size: int) -> Image.Image:
    image, draw = _page(size, (255, 255, 255))
    x, top, bottom = size // 10, size // 5, size * 4 // 5
    unit = int(random.integers(1, 4))
    while x < size * 9 // 10:
        wide = unit * int(random.integers(1, 5))
        draw.rectangle((x, top, x + wide - 1, bottom), (0, 0, 0))
        x += wide + unit * int(random.integers(1, 5))
    draw.text((size // 4, bottom + 4), str(random.integers(10**12)), (0, 0, 0), _font(random, 10, 14))
    return image


def _qr(random: Random, size: int) -> Image.Image:
    modules = int(random.choice([21, 25, 29, 33, 45]))
    bits = random.integers(0, 2, (modules, modules))
    finder = np.pad(np.pad(np.ones((3, 3), int), 1), 1, constant_values=1)  # in three of the corners
    for corner in ((slice(7), slice(7)), (slice(7), slice(-7, None)), (slice(-7, None), slice(7))):
        bits[corner] = finder
    page = Image.fromarray((255 * (1 - np.pad(bits, 4))).astype(np.uint8))
    return page.resize((size, size), Image.Resampling.NEAREST).convert("RGB")


# --- Drawings ---------------------------------------------------------------------------------------------


def _icons(random: Random, size: int) -> Image.Image:
    ground, _ = _pair(random)
    image, draw = _page(size, ground)
    for _ in range(random.integers(1, 6)):
        x, y = _place(random, size)
        r = int(np.exp(random.uniform(math.log(3), math.log(size / 3))))
        box, ink = (x - r, y - r, x + r, y + r), _colour(random)
        kind = random.integers(4)
        if kind == 0:
            draw.ellipse(box, ink)
        elif kind == 1:
            draw.rectangle(box, ink)
        elif kind == 2:
            draw.regular_polygon((x, y, r), int(random.integers(3, 7)), int(random.integers(360)), ink)
        else:
            draw.arc(box, 0, int(random.integers(90, 360)), ink, max(1, r // 5))
    return image


def _line_chart(random: Random, size: int) -> Image.Image:
    image, draw = _page(size, (255, 255, 255))
    for k in range(1, 6):
        draw.line((size // 10, k * size // 6, size, k * size // 6), (225, 225, 225))
        draw.text((2, k * size // 6 - 6), str(random.integers(100)), (80, 80, 80), _font(random, 9, 9))
    draw.line((size // 10, 0, size // 10, size * 9 // 10, size, size * 9 // 10), (0, 0, 0))
    for _ in range(random.integers(1, 4)):
        count = int(random.integers(5, 60))
        y = random.standard_normal(count).cumsum()
        y = (y - y.min()) / max(float(np.ptp(y)), 1e-6) * size * 0.7 + size * 0.1
        x = np.linspace(size // 10, size, count)
        draw.line(
            [(float(a), float(b)) for a, b in zip(x, y, strict=True)],
            _colour(random),
            int(random.integers(1, 3)),
        )
    return image


def _bar_chart(random: Random, size: int) -> Image.Image:
    ground, ink = _pair(random)
    image, draw = _page(size, ground)
    count = int(random.integers(2, 16))
    for k in range(count):
        left, high = size // 12 + k * size * 11 // 12 // count, int(random.uniform(0.05, 0.85) * size)
        draw.rectangle(
            (left, size * 11 // 12 - high, left + size // 2 // count, size * 11 // 12), _colour(random)
        )
        draw.text((left, size * 11 // 12 + 2), str(k), ink, _font(random, 9, 9))
    draw.line((0, size * 11 // 12, size, size * 11 // 12), ink)
    return image


def _lines(random: Random, size: int) -> Image.Image:
    ground, ink = _pair(random)
    image, draw = _page(size, ground)
    for _ in range(random.integers(1, 9)):
        draw.line((*_place(random, size), *_place(random, size)), ink, int(random.integers(1, 4)))
    return image


def _line_drawing(random: Random, size: int) -> Image.Image:
    ground, ink = _pair(random)
    image, draw = _page(size, ground)
    for _ in range(random.integers(2, 9)):
        (x, y), r = _place(random, size, size // 6), random.uniform(size / 20, size / 4)
        turn = np.linspace(0, 2 * math.pi, 90)
        radius = r * (
            1 + sum(random.uniform(-0.25, 0.25) * np.sin(k * turn + random.uniform(0, 6)) for k in (2, 3, 5))
        )
        points = zip(x + radius * np.cos(turn), y + radius * np.sin(turn), strict=True)
        draw.line([(float(a), float(b)) for a, b in points], ink, int(random.integers(1, 3)))
    return image


# --- Patterns and grounds -----------------------------------------------------------------------------------


def _gradient(random: Random, size: int) -> Image.Image:
    y, x = np.mgrid[:size, :size] / (size - 1)
    angle, centre = random.uniform(0, 2 * math.pi), random.random(2)
    straight = 0.5 + (x - 0.5) * math.cos(angle) + (y - 0.5) * math.sin(angle)
    share = straight if random.random() < 0.5 else np.hypot(x - centre[0], y - centre[1])
    return _blend(share, _colour(random), _colour(random))


def _flat(random: Random, size: int) -> Image.Image:
    return _page(size, _colour(random))[0]


def _points(random: Random, size: int) -> Image.Image:
    ground, ink = _pair(random)
    image, draw = _page(size, ground)
    for _ in range(random.integers(1, 6)):
        (x, y), side = _place(random, size), int(random.integers(1, 7))
        draw.rectangle((x, y, x + side - 1, y + side - 1), ink)
    return image


def _stars(random: Random, size: int) -> Image.Image:
    sky = np.zeros((size, size))
    for _ in range(random.integers(5, 200)):
        (cx, cy), width = _place(random, size), random.uniform(0.4, 1.5)
        y, x = np.mgrid[max(0, cy - 5) : cy + 6, max(0, cx - 5) : cx + 6]
        inside = (y < size) & (x < size)
        glow = random.random() ** 2 * np.exp(-((x - cx) ** 2 + (y - cy) ** 2) / (2 * width**2))
        sky[y[inside], x[inside]] += glow[inside]
    return _blend(sky, (4, 4, 12), (255, 250, 240))


def _grating(random: Random, size: int) -> Image.Image:
    wave = np.sin(2 * math.pi * _waves(random, size))
    share = (wave > 0).astype(float) if random.random() < 0.5 else 0.5 + 0.5 * wave
    return _blend(share, *_pair(random))


def _checkerboard(random: Random, size: int) -> Image.Image:
    state = random.bit_generator.state
    first = _waves(random, size)
    random.bit_generator.state = state  # the same direction and period, turned by a right angle
    second = np.rot90(_waves(random, size))
    return _blend(((np.floor(2 * first) + np.floor(2 * second)) % 2), *_pair(random))


def _halftone(random: Random, size: int) -> Image.Image:
    cell = int(random.integers(3, 13))
    y, x = np.mgrid[:size, :size]
    tone = np.asarray(_gradient(random, size).convert("L")) / 255
    tone = 0.05 + 0.8 * (tone - tone.min()) / max(float(np.ptp(tone)), 1e-6)
    distance = np.hypot((x % cell) - (cell - 1) / 2, (y % cell) - (cell - 1) / 2) / cell
    return _blend((distance < 0.75 * np.sqrt(tone)).astype(float), *_pair(random))


def _mesh(random: Random, size: int) -> Image.Image:
    image = cloud(random, size)
    draw, step, ink = ImageDraw.Draw(image), int(random.integers(6, 40)), _colour(random)
    for k in range(0, size, step):
        draw.line((k, 0, k, size), ink)
        draw.line((0, k, size, k), ink)
    return image


def _noise(random: Random, size: int) -> Image.Image:
    grain = int(random.choice([1, 1, 2, 4]))
    side = -(-size // grain)
    values = random.integers(0, 256, (side, side, 3))
    if random.random() < 0.3:
        values = 255 * (random.random((side, side, 1)) < random.uniform(0.005, 0.5)).repeat(3, 2)
    picture = values.astype(np.uint8).repeat(grain, 0).repeat(grain, 1)[:size, :size]
    return Image.fromarray(picture)


def _rings(random: Random, size: int) -> Image.Image:
    y, x = np.mgrid[:size, :size] / size - random.random(2)[:, None, None]
    return _blend(
        0.5 + 0.5 * np.cos(random.uniform(20, 0.5 * math.pi * size) * (x**2 + y**2)), *_pair(random)
    )


_DRAW: dict[str, Callable[[Random, int], Image.Image]] = {
    "words": _words, "terminal": _terminal, "table": _table, "barcode": _barcode, "icons": _icons,
    "line chart": _line_chart, "gradient": _gradient, "points": _points, "grating": _grating,
    "halftone": _halftone, "noise": _noise,
    "paragraph": _paragraph, "screenshot": _screenshot, "qr code": _qr, "bar chart": _bar_chart,
    "lines": _lines, "line drawing": _line_drawing, "flat": _flat, "stars": _stars,
    "checkerboard": _checkerboard, "mesh": _mesh, "rings": _rings,
}  # fmt: skip
TRAINED = tuple(_DRAW)[:11]
"""Kinds that models may be trained on."""
HELD_BACK = tuple(_DRAW)[11:]
"""Kinds that are for measuring only."""


SMALLEST = 64
"""Side in pixels of the smallest picture that can be drawn."""


def draw(kind: str, seed: int, size: int = 256) -> Tensor:
    """A picture of a kind; the same for the same seed.

    Args:
        kind: of `TRAINED` or `HELD_BACK`.
        seed: 0 or above; each gives another picture.
        size: side in pixels, at least `SMALLEST`.

    Returns:
        Tensor: uint8 [3, size, size].

    Raises:
        ValueError: if there is no such kind, or the size is too small to draw in.
    """
    if kind not in _DRAW:
        raise ValueError(f"there is no kind {kind!r}; choose from {', '.join(_DRAW)}")
    if size < SMALLEST:
        raise ValueError(f"size must be at least {SMALLEST} pixels, got {size}")
    random = np.random.default_rng([seed, tuple(_DRAW).index(kind)])
    pixels = np.asarray(_DRAW[kind](random, size))
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1)
