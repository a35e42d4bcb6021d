"""Inline SVG: line charts with confidence bands, histograms, scatter plots and bars.

Colours are CSS variables of the report (`--s-KEY`), so one drawing serves the light and the dark page. Every
mark has a `<title>`, which browsers show on hover and screen readers read.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 640, 360
LEFT, RIGHT, TOP, BOTTOM = 70, 18, 16, 46
SHAPES = {"dove": "circle", "qdove": "diamond", "vqgan": "square", "jpeg": "triangle", "webp": "cross"}


@dataclass(frozen=True)
class Point:
    """One mark: position, confidence interval of y, and what a hover says."""

    x: float
    y: float
    low: float | None = None
    high: float | None = None
    label: str = ""


@dataclass(frozen=True)
class Line:
    """A series. `key` chooses colour and shape; a lone `star` point marks the model's own choice.

    A `hollow` line is a second one of the same system: dashed, with hollow marks.
    """

    key: str
    name: str
    points: Sequence[Point]
    joined: bool = True
    star: Point | None = None
    hollow: bool = False


@dataclass(frozen=True)
class Axis:
    """Range and ticks of one direction."""

    name: str
    low: float
    high: float
    log: bool = False
    ticks: Sequence[float] = ()

    def place(self, value: float, start: float, end: float) -> float:
        """Pixel of a value."""
        low, high, value = (
            (math.log(v) for v in (self.low, self.high, max(value, 1e-12)))
            if self.log
            else (self.low, self.high, value)
        )
        return start + (value - low) / ((high - low) or 1) * (end - start)


def axis(
    name: str, values: Sequence[float], *, log: bool = False, zero: bool = False, whole: bool = False
) -> Axis:
    """A range with round ticks around finite values.

    Args:
        name: what stands beside the axis; "tokens" has powers of two for ticks if `log`.
        values: what must fit.
        log: logarithmic; values must be above 0.
        zero: starts at 0.
        whole: ticks are whole numbers.
    """
    values = [v for v in values if math.isfinite(v)] or [0.0, 1.0]
    low, high = min(values), max(values)
    if log:
        low = max(low, 1e-12)
        ticks = _log_ticks(low, high, octaves=name == "tokens")
        if len(ticks) > 1:  # else the range is so narrow that a linear axis says more
            return Axis(name, low / 1.12, high * 1.12, True, ticks)
    low = min(low, 0.0) if zero else low
    if low == high:  # one value: some room around it
        low, high = low - 0.5 * (abs(low) or 1.0), high + 0.5 * (abs(high) or 1.0)
    span = high - low
    if not zero:
        low -= 0.06 * span
    high += 0.06 * span
    step = 10 ** math.floor(math.log10(span / 4))
    step *= next(m for m in (1, 2, 2.5, 5, 10) if span / (m * step) <= 6)
    step = max(step, 1.0) if whole else step
    first = math.ceil(low / step - 1e-9)
    ticks = [step * i for i in range(first, math.floor(high / step + 1e-9) + 1)]
    return Axis(name, low, high, False, ticks)


def _log_ticks(low: float, high: float, octaves: bool) -> list[float]:
    if octaves:
        first, last = math.ceil(math.log2(low) - 0.01), math.floor(math.log2(high) + 0.01)
        return [2.0**i for i in range(first, last + 1)]
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    steps = (1, 2, 5) if high / low < 300 else (1,)
    ticks = [m * 10.0**i for i in decades for m in steps]
    return [t for t in ticks if low / 1.1 <= t <= high * 1.1]


def number(value: float) -> str:
    """Short decimal text of a tick or hover."""
    if value == 0 or not math.isfinite(value):
        return "0" if value == 0 else "∞"
    if abs(value) >= 10000:
        return f"{value:,.0f}".replace(",", "\u2009")
    if abs(value) < 1e-4:
        return f"{value:.0e}"
    return f"{value:.4g}"


def line_chart(lines: Sequence[Line], x: Axis, y: Axis, title: str) -> str:
    """Lines with bands; the legend stands below the drawing."""
    body = [_frame(x, y)]
    for line in lines:
        body.append(f'<g class="{_class(line)}">')
        body += _band(line, x, y)
        if line.joined and len(line.points) > 1:
            path = " ".join(f"{_x(x, p.x):.1f},{_y(y, p.y):.1f}" for p in line.points)
            body.append(f'<polyline class="line" points="{path}"/>')
        for p in line.points:
            body.append(_mark(SHAPES.get(line.key, "circle"), _x(x, p.x), _y(y, p.y), 4.2, p.label))
        if line.star is not None:
            body.append(_mark("star", _x(x, line.star.x), _y(y, line.star.y), 9, line.star.label))
        body.append("</g>")
    return _svg(body, title) + (_legend(lines) if len(lines) > 1 else "")


def histogram(counts: Sequence[int], edges: Sequence[float], name: str, title: str, mark: float) -> str:
    """Bars over `edges` (one more than counts), with a line at `mark` (the mean)."""
    x = Axis(name, edges[0], edges[-1], False, axis(name, list(edges), zero=True).ticks)
    y = axis("images", [0, *counts], zero=True, whole=True)
    body = [_frame(x, y), '<g class="s-dove">']
    for count, left, right in zip(counts, edges, edges[1:], strict=False):
        if count:
            x0, x1, top = _x(x, left), _x(x, right), _y(y, count)
            body.append(
                f'<rect class="bar" x="{x0 + 0.6:.1f}" y="{top:.1f}" width="{max(x1 - x0 - 1.2, 0.8):.1f}" '
                f'height="{_y(y, 0) - top:.1f}"><title>{left:.0f} to {right:.0f}: {count} '
                "images</title></rect>"
            )
    place = _x(x, mark)
    side, anchor = (6, "start") if place < WIDTH * 0.75 else (-6, "end")
    body.append(f'<line class="mean" x1="{place:.1f}" x2="{place:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>')
    body.append(
        f'<text class="note" x="{place + side:.1f}" y="{TOP + 12}" text-anchor="{anchor}">mean '
        f"{mark:.1f}</text>"
    )
    return _svg([*body, "</g>"], title)


def scatter(points: Sequence[Point], x: Axis, y: Axis, title: str, key: str = "dove") -> str:
    """Small translucent dots."""
    body = [_frame(x, y), f'<g class="s-{key}">']
    for p in points:
        body.append(
            f'<circle class="dot" cx="{_x(x, p.x):.1f}" cy="{_y(y, p.y):.1f}" r="3.2">'
            f"<title>{escape(p.label)}</title></circle>"
        )
    return _svg([*body, "</g>"], title)


@dataclass(frozen=True)
class Bar:
    """A bar: colour key, name, what exactly (small print), value, deviation, and the text behind it."""

    key: str
    name: str
    detail: str
    value: float
    deviation: float
    text: str


def bars(rows: Sequence[Bar], unit: str, title: str) -> str:
    """Horizontal bars with whiskers of one deviation."""
    row, left = 42, 210
    height = 2 * TOP + row * len(rows)
    top = max((bar.value + bar.deviation for bar in rows), default=1.0) or 1.0
    reach = WIDTH - left - 110
    body = []
    for i, bar in enumerate(rows):
        y = TOP + row * i
        end, error = left + reach * bar.value / top, reach * bar.deviation / top
        hover = escape(f"{bar.name}, {bar.detail}: {bar.text} {unit}")
        body.append(
            f'<g class="s-{bar.key}"><text class="label" x="{left - 12}" y="{y + 17}" text-anchor="end">'
            f"{escape(_short(bar.name))}</text>"
            f'<text class="tick" x="{left - 12}" y="{y + 32}" text-anchor="end">{escape(bar.detail)}</text>'
            f'<rect class="bar" x="{left}" y="{y + 8}" '
            f'width="{max(end - left, 1):.1f}" height="22" rx="2"><title>{hover}</title></rect>'
            f'<path class="whisker" d="M{end - error:.1f} {y + 19}H{end + error:.1f}"/>'
            f'<text class="value" x="{end + error + 8:.1f}" y="{y + 24}">{escape(bar.text)}</text></g>'
        )
    return _svg(body, title, height)


def _short(name: str, length: int = 28) -> str:
    return name if len(name) <= length else name[: length - 1] + "\u2026"


def _x(x: Axis, value: float) -> float:
    return x.place(value, LEFT, WIDTH - RIGHT)


def _y(y: Axis, value: float) -> float:
    return y.place(value, HEIGHT - BOTTOM, TOP)


def _svg(body: Sequence[str], title: str, height: int = HEIGHT) -> str:
    return (
        f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(title)}">'
        f"<title>{escape(title)}</title>{''.join(body)}</svg>"
    )


def _frame(x: Axis, y: Axis) -> str:
    parts = []
    for tick in y.ticks:
        at = _y(y, tick)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>')
        parts.append(
            f'<text class="tick" x="{LEFT - 8}" y="{at + 4:.1f}" text-anchor="end">{number(tick)}</text>'
        )
    for tick in x.ticks:
        at = _x(x, tick)
        parts.append(
            f'<line class="stub" x1="{at:.1f}" x2="{at:.1f}" y1="{HEIGHT - BOTTOM}" '
            f'y2="{HEIGHT - BOTTOM + 5}"/>'
        )
        parts.append(
            f'<text class="tick" x="{at:.1f}" y="{HEIGHT - BOTTOM + 19}" '
            f'text-anchor="middle">{number(tick)}</text>'
        )
    bottom = HEIGHT - BOTTOM
    parts.append(f'<line class="base" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{bottom}" y2="{bottom}"/>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(
        f'<text class="name" x="{middle}" y="{HEIGHT - 6}" text-anchor="middle">{escape(x.name)}</text>'
    )
    at = (TOP + bottom) / 2
    parts.append(
        f'<text class="name" transform="translate(11 {at}) rotate(-90)" '
        f'text-anchor="middle">{escape(y.name)}</text>'
    )
    return "".join(parts)


def _band(line: Line, x: Axis, y: Axis) -> list[str]:
    known = [(p.x, p.low, p.high) for p in line.points if p.low is not None and p.high is not None]
    if len(known) > 1 and line.joined:
        edge = [f"{_x(x, a):.1f},{_y(y, high):.1f}" for a, _, high in known]
        edge += [f"{_x(x, a):.1f},{_y(y, low):.1f}" for a, low, _ in reversed(known)]
        return [f'<polygon class="band" points="{" ".join(edge)}"/>']
    return [
        f'<path class="whisker" d="M{_x(x, a):.1f} {_y(y, low):.1f}V{_y(y, high):.1f}"/>'
        for a, low, high in known
    ]


def _mark(shape: str, x: float, y: float, r: float, label: str) -> str:
    title = f"<title>{escape(label)}</title>" if label else ""
    if shape == "circle":
        return f'<circle class="mark" cx="{x:.1f}" cy="{y:.1f}" r="{r}">{title}</circle>'
    shapes: dict[str, list[tuple[float, float]]] = {
        "square": [(-1, -1), (1, -1), (1, 1), (-1, 1)],
        "diamond": [(0, -1.35), (1.35, 0), (0, 1.35), (-1.35, 0)],
        "triangle": [(0, -1.25), (1.2, 0.95), (-1.2, 0.95)],
        "cross": [(-1.2, -0.4), (-0.4, -0.4), (-0.4, -1.2), (0.4, -1.2), (0.4, -0.4), (1.2, -0.4),
                  (1.2, 0.4), (0.4, 0.4), (0.4, 1.2), (-0.4, 1.2), (-0.4, 0.4), (-1.2, 0.4)],
        "star": [
            (math.sin(math.pi * i / 5) * (1 if i % 2 == 0 else 0.45),
             -math.cos(math.pi * i / 5) * (1 if i % 2 == 0 else 0.45))
            for i in range(10)
        ],
    }  # fmt: skip
    points = " ".join(f"{x + a * r:.1f},{y + b * r:.1f}" for a, b in shapes[shape])
    return f'<polygon class="mark {shape}" points="{points}">{title}</polygon>'


def _class(line: Line) -> str:
    return f"s-{line.key} hollow" if line.hollow else f"s-{line.key}"


def _legend(lines: Sequence[Line]) -> str:
    items = []
    for line in lines:
        shape = _mark(SHAPES.get(line.key, "circle"), 8, 8, 4.2, "")
        items.append(
            f'<span class="key {_class(line)}"><svg viewBox="0 0 16 16" width="16" height="16" '
            f'aria-hidden="true">{shape}</svg>{escape(line.name)}</span>'
        )
    return f'<div class="legend">{"".join(items)}</div>'
