"""Drawn documents: every line lies where it is said to lie, and what is read of it is scored by hand."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from dove_eval.documents import KINDS, Document, draw
from dove_eval.reader import characters_read, crop, some
from dove_eval.typesetting import Line


@pytest.fixture(scope="module", params=KINDS)
def document(request: pytest.FixtureRequest) -> Document:
    return draw(request.param, 1)


def test_a_seed_makes_one_document(document: Document) -> None:
    again, other = draw(document.kind, 1), draw(document.kind, 2)
    assert np.array_equal(np.asarray(again.picture), np.asarray(document.picture))
    assert again.lines == document.lines and other.lines != document.lines


def test_lines_lie_in_the_picture_and_apart(document: Document) -> None:
    width, height = document.picture.size
    assert len(document.lines) > 5
    for line in document.lines:
        left, top, right, bottom = line.box
        assert 0 <= left < right <= width and 0 <= top < bottom <= height and line.text.strip() == line.text
    for i, one in enumerate(document.lines):  # descenders may reach into the margin of the next line
        for other in document.lines[i + 1 :]:
            across = min(one.box[2], other.box[2]) - max(one.box[0], other.box[0])
            down = min(one.box[3], other.box[3]) - max(one.box[1], other.box[1])
            least = min(one.box[3] - one.box[1], other.box[3] - other.box[1])
            assert across <= 4 or down <= 0.35 * least, (one, other)


@pytest.mark.parametrize("kind", ["page-20", "page-28", "page-12"])
def test_all_ink_of_a_page_is_in_a_line(kind: str) -> None:
    document = draw(kind, 0)
    pixels = np.asarray(document.picture).copy()
    paper = pixels[0, 0].copy()
    for line in document.lines:
        left, top, right, bottom = line.box
        part = pixels[top:bottom, left:right]
        inked = (part != paper).any(2)
        assert inked.any() and not inked[0].any() and not inked[-1].any(), "a margin all around"
        assert not inked[:, 0].any() and not inked[:, -1].any()
        part[:] = paper
    assert (pixels == paper).all()


def test_kinds_and_fonts() -> None:
    with pytest.raises(ValueError, match="there is no kind 'letter'; choose from page-20"):
        draw("letter", 0)
    # Seed 0 has Pillow's own font, seed 1 the first that is given.
    assert draw("receipt", 0, [__file__]).lines == draw("receipt", 0).lines  # type: ignore[list-item]
    with pytest.raises(OSError):
        draw("receipt", 1, [__file__])  # type: ignore[list-item]


@pytest.mark.parametrize(
    ("line", "read", "expected"),
    [
        ("two words", "twowords", 8),  # white space does not count
        ("two words", "two w0rds", 7),
        ("ab", "xyzxyz", 0),  # not below nothing
        ("12.50", "", 0),
        ("12.50", "12.50", 5),
    ],
)
def test_characters_read(line: str, read: str, expected: int) -> None:
    assert characters_read(line, read) == expected


def test_lines_that_are_read_are_spread() -> None:
    lines = [Line("ten  charac", (0, i, 1, i + 1)) for i in range(20)]  # nine without spaces
    assert [line.box[1] for line in some(lines, 45)] == [2, 6, 10, 14, 18]
    assert some(lines, 10**6) == lines and len(some(lines, 1)) == 1


def test_a_line_is_found_in_a_picture_of_another_size() -> None:
    picture = Image.new("L", (200, 100))
    picture.paste(255, (40, 20, 61, 31))
    cut = np.asarray(
        crop(picture.resize((100, 50), Image.Resampling.NEAREST), Line("a", (40, 20, 61, 31)), (200, 100))
    )
    assert cut.shape == (6, 11) and (cut[:5, :10] == 255).all()
