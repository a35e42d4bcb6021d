"""Lines of type on a picture, with what is written in each and where it lies; words that nobody can guess."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from dove_ext.images.drawn import WORDS

Colour = tuple[int, int, int]
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
SYLLABLES = tuple(c + v for c in "bcdfghjklmnprstvwz" for v in "aeiou")


class Line(NamedTuple):
    """A line of text.

    Attributes:
        text: what is written.
        box: left, top, right and bottom in pixels of the picture, with a little of the ground around it.
    """

    text: str
    box: tuple[int, int, int, int]


@functools.lru_cache(maxsize=64)
def font(file: Path | None, size: int) -> Font:
    """A font of so many pixels, from a file; None: Pillow's own.

    Raises:
        OSError: if it cannot be read.
    """
    return ImageFont.load_default(size) if file is None else ImageFont.truetype(str(file), size)


@dataclass
class Sheet:
    """A picture while it is drawn.

    Attributes:
        random: decides all.
        picture: RGB.
        font_file: of its type; None: Pillow's own.
        lines: what was written so far.
    """

    random: np.random.Generator
    picture: Image.Image
    font_file: Path | None
    lines: list[Line] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.draw = ImageDraw.Draw(self.picture)

    def font(self, size: int) -> Font:
        """Of so many pixels."""
        return font(self.font_file, size)

    def write(self, left: int, top: int, text: str, size: int, ink: Colour, *, right: bool = False) -> None:
        """One line; with `right` it ends at `left`."""
        font, anchor = self.font(size), "ra" if right else "la"
        self.draw.text((left, top), text, ink, font, anchor)
        box = self.draw.textbbox((left, top), text, font, anchor)
        around = max(2, size // 8)
        width, height = self.picture.size
        self.lines.append(
            Line(
                text,
                (
                    max(0, int(box[0]) - around), max(0, int(box[1]) - around),
                    min(width, round(box[2]) + around), min(height, round(box[3]) + around),
                ),
            )
        )  # fmt: skip

    def text(self, size: int, width: int) -> str:
        """As many words as fit into so many pixels, at least one."""
        font, words = self.font(size), [self.word()]
        while self.draw.textlength(" ".join(grown := [*words, self.word()]), font) <= width:
            words = grown
        return " ".join(words)

    def words(self, low: int, high: int) -> str:
        """Between so many words."""
        return " ".join(self.word() for _ in range(self.random.integers(low, high + 1)))

    def word(self) -> str:
        """A common word, one that nobody knows, or a number: a reader cannot guess it."""
        random = self.random
        kind = random.random()
        if kind < 0.1:
            return str(random.integers(10 ** int(random.integers(1, 6))))
        if kind < 0.5:
            word = str(random.choice(WORDS))
        else:
            word = "".join(random.choice(SYLLABLES, random.integers(1, 5)))
            word += str(random.choice(["", "n", "s", "t", "r", "ng"]))
        word = word.capitalize() if random.random() < 0.15 else word
        return word + str(random.choice(["", ",", "."], p=[0.86, 0.08, 0.06]))

    def price(self) -> str:
        """A number with two decimals."""
        return f"{self.random.integers(1, 200)}.{self.random.integers(100):02d}"

    def pick(self, colours: Sequence[Colour]) -> Colour:
        """One of them."""
        return colours[int(self.random.integers(len(colours)))]
