"""Axes with round ticks, and marks where the numbers say."""

from __future__ import annotations

import re

import pytest

from dove_eval.plots import Bar, Line, Point, axis, bars, histogram, line_chart, number, scatter


@pytest.mark.parametrize(
    ("values", "ticks"),
    [
        ([0.0, 1.0], [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        ([22.0, 38.0], [25, 30, 35]),
        ([5.0], None),
    ],
)
def test_linear_ticks_are_round_and_inside(values: list[float], ticks: list[float] | None) -> None:
    found = axis("dB", values)
    assert found.low < min(values) and max(values) < found.high
    assert all(found.low <= t <= found.high for t in found.ticks) and 2 <= len(found.ticks) <= 9
    steps = [b - a for a, b in zip(found.ticks, found.ticks[1:], strict=False)]
    assert all(step == pytest.approx(steps[0]) for step in steps)
    if ticks is not None:
        assert [number(t) for t in found.ticks] == [number(t) for t in ticks]


def test_logarithmic_ticks() -> None:
    assert list(axis("tokens", [16, 256], log=True).ticks) == [16, 32, 64, 128, 256]
    assert list(axis("bytes", [1000, 60000], log=True).ticks) == [1000, 2000, 5000, 10000, 20000, 50000]
    narrow = axis("error", [0.31, 0.34], log=True)
    assert not narrow.log and len(narrow.ticks) > 1, "too narrow for round powers"
    middle = axis("tokens", [16, 256], log=True).place(64, 0, 100)
    assert middle == pytest.approx(50)


def test_whole_ticks_for_counts() -> None:
    assert list(axis("images", [0, 2], zero=True, whole=True).ticks) == [0, 1, 2]


def test_marks_stand_where_the_numbers_say_and_text_is_escaped() -> None:
    points = [Point(16, 10, 9, 11, "<a> & b"), Point(256, 30, 29, 31, "c")]
    x, y = axis("tokens", [16, 256], log=True), axis("dB", [10, 30])
    svg = line_chart([Line("dove", "<model>", points), Line("vqgan", "v", points[1:])], x, y, "<title>")
    assert "<a>" not in svg and "&lt;a&gt; &amp; b" in svg and "<model>" not in svg
    circles = [
        (float(a), float(b)) for a, b in re.findall(r'circle class="mark" cx="([\d.]+)" cy="([\d.]+)"', svg)
    ]
    assert circles[0][0] < circles[1][0] and circles[0][1] > circles[1][1], "right is more, up is more"
    assert svg.count('<polygon class="band"') == 1 and "whisker" in svg, "a lone point has a whisker"
    assert "hollow" not in svg
    hollow = line_chart([Line("dove", "a", points), Line("dove", "b", points, hollow=True)], x, y, "t")
    assert hollow.count('class="s-dove hollow"') == 1 and hollow.count('class="key s-dove hollow"') == 1
    dots = scatter(points, x, y, "t")
    assert dots.count("<circle") == 2


def test_bars_are_as_long_as_their_values() -> None:
    svg = bars([Bar("dove", "a", "layer 1", 40, 1, "40"), Bar("pixels", "b", "x", 20, 1, "20")], "%", "t")
    first, second = (float(w) for w in re.findall(r'height="22"|width="([\d.]+)" height="22"', svg) if w)
    assert first == pytest.approx(2 * second, rel=0.01)
    heights = re.findall(
        r'class="bar"[^>]*height="([\d.]+)"', histogram([1, 0, 3], [0, 1, 2, 3], "n", "t", 2.0)
    )
    assert len(heights) == 2 and float(heights[1]) == pytest.approx(3 * float(heights[0]), rel=0.01)
