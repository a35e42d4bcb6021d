"""One question about one picture, and what its answer is held against."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dove_ext.errors import DoveError

if TYPE_CHECKING:
    from PIL import Image


class BenchmarkError(DoveError, ValueError):
    """A benchmark's file, split or option cannot be used."""


@dataclass(frozen=True)
class Record:
    """A question of a benchmark.

    Attributes:
        question_id: as the benchmark's own files call it.
        question: as they put it, without a suffix.
        image: where the picture is, or its bytes; None for a question without one. It is not looked at
            before `open`.
        answers: what counts as right: ten people's answers, one answer, one option's letter; empty where
            the benchmark withholds it.
        options: the answers to choose from, in the order of their letters; empty for a free answer.
        hint: a text that belongs to the question; empty if there is none.
        group: part of the benchmark whose score is reported apart, too; empty for none.
    """

    question_id: int | str
    question: str
    image: Path | bytes | None
    answers: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    hint: str = ""
    group: str = ""

    def open(self) -> Image.Image:
        """The picture, read now, by the rules of `dove_ext.images.files.read_image`.

        Returns:
            Image: RGB.

        Raises:
            BenchmarkError: if the question has none, or its file is not there.
            ImageError: if it is damaged.
        """
        from dove_ext.images.files import read_image, read_stream, to_pil

        if self.image is None:
            raise BenchmarkError(f"question {self.question_id} has no picture; ask before you open it")
        if isinstance(self.image, bytes):
            pixels = read_stream(io.BytesIO(self.image), f"the picture of question {self.question_id}")
        elif not self.image.is_file():
            raise BenchmarkError(
                f"{str(self.image)!r}, the picture of question {self.question_id}, is not there; unpack the "
                "benchmark's pictures anew"
            )
        else:
            pixels = read_image(self.image)
        (picture,) = to_pil(pixels[None])
        return picture
