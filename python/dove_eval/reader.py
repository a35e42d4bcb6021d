"""Who reads text in pictures, and how much of it was read right."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

import numpy as np
from PIL import Image

from dove_eval.typesetting import Line
from dove_ext.errors import DoveError
from dove_ext.metrics.edits import levenshtein


class Reader(Protocol):
    """Reads crops of lines. `identity` is whatever decides what it reads, as text."""

    identity: str

    def read(self, crops: Sequence[Image.Image]) -> list[str]:
        """The text of each crop, RGB."""


class RapidReader:
    """PP-OCRv4's recognition of Chinese and English as the package `rapidocr-onnxruntime` brings it.

    Its detector is not used: on a page of dense type it misses lines.
    """

    def __init__(self, threads: int = 1) -> None:
        """Load it.

        Args:
            threads: of its network.

        Raises:
            DoveError: if the package is missing.
        """
        try:
            from importlib.metadata import version

            from rapidocr_onnxruntime import RapidOCR
        except ImportError as error:
            raise DoveError(
                "text is read by the package rapidocr-onnxruntime, which cannot be imported "
                f"({error}): pip install 'dove-ext[text]'"
            ) from error
        # One line at a time: in a batch all are padded to the widest, which costs time and can change texts.
        self._engine = RapidOCR(intra_op_num_threads=threads, inter_op_num_threads=1, rec_batch_num=1)
        self.identity = f"rapidocr-onnxruntime {version('rapidocr-onnxruntime')}, recognition of PP-OCRv4"

    def read(self, crops: Sequence[Image.Image]) -> list[str]:
        """See `Reader`."""
        blue_first = [np.ascontiguousarray(np.asarray(crop.convert("RGB"))[..., ::-1]) for crop in crops]
        return [text for text, _ in self._engine.text_rec(blue_first)[0]]


def crop(picture: Image.Image, line: Line, size: tuple[int, int]) -> Image.Image:
    """A line of a picture that may be larger or smaller than the document of `size` that it shows."""
    across, down = picture.width / size[0], picture.height / size[1]
    left, top, right, bottom = line.box
    return picture.crop(
        (int(left * across), int(top * down), math.ceil(right * across), math.ceil(bottom * down))
    )


def characters_read(line: str, read: str) -> int:
    """How many characters of a line were read: its length less the edit distance, at least 0.

    White space does not count: this reader leaves out many spaces between words, also on the original.
    """
    line, read = plain(line), plain(read)
    return max(0, len(line) - (levenshtein(line, read) if line != read else 0))


def plain(text: str) -> str:
    """Without white space."""
    return "".join(text.split())


def some(lines: Sequence[Line], characters: int) -> list[Line]:
    """Lines evenly spread over a document, with about so many characters; all of them if it has fewer."""
    lengths = [len(plain(line.text)) for line in lines]
    count = min(len(lines), max(1, round(len(lines) * characters / max(1, sum(lengths)))))
    return [lines[(2 * k + 1) * len(lines) // (2 * count)] for k in range(count)]
