"""The plots of `dove bench` as SVG files that stand on their own."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from html import escape
from typing import Any

from dove_eval.plots import HEIGHT, WIDTH, Line, Point, axis, line_chart

from .bars import Figures
from .build import EAGER, GENERATOR, OURS, RELEASED

Row = dict[str, Any]
COLOURS = {"dove": "#0b62d6", "qdove": "#7a3fc8", "vqgan": "#c2540a", "jpeg": "#6b7280", "webp": "#0f8a74"}
LEGEND = 24  # pixels under the drawing


def _file(lines: Sequence[Line], x: Any, y: Any, title: str) -> str:
    """`dove_eval`'s drawing with its colours and legend inside."""
    body = line_chart(lines, x, y, title).split("</svg>", 1)[0]
    rows = -(-len(lines) // 2)
    height = HEIGHT + LEGEND * rows
    body = body.replace(
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}"',
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}"',
    )
    style = (
        "text{font:13px sans-serif;fill:#222}.tick,.name{fill:#555}.grid{stroke:#e3e3e3}"
        ".base,.stub{stroke:#777}.line{fill:none;stroke-width:2.2}.band{opacity:.16;stroke:none}"
        ".whisker{stroke-width:1.8;fill:none}"
    )
    style += "".join(
        f".s-{key}{{fill:{c};stroke:{c}}}.s-{key} .line{{fill:none}}" for key, c in COLOURS.items()
    )
    legend = ""
    for i, line in enumerate(lines):
        left, top = 70 + (i % 2) * 285, HEIGHT + 14 + LEGEND * (i // 2)
        legend += (
            f'<g class="s-{line.key}"><rect x="{left}" y="{top - 10}" width="12" height="12"/></g>'
            f'<text x="{left + 20}" y="{top}">{escape(line.name)}</text>'
        )
    back = f'<rect width="{WIDTH}" height="{height}" fill="#fff"/><style>{style}</style>'
    start = body.index(">", body.index("<svg")) + 1
    return body[:start] + back + body[start:] + legend + "</svg>\n"


def _point(x: float, row: Row, scale: float, unit: str) -> Point:
    times = sorted(scale * s for s in row["seconds"])
    middle = statistics.median(times)
    return Point(x, middle, times[0], times[-1], f"{row['system']} ({row['way']}): {middle:.4g} {unit}")


SERIES = (
    ("dove", "dove-base (dove_ext)", "dove-base-", OURS),
    ("qdove", "ALIT, bf16", "ALIT-", EAGER),
    ("webp", "TiTok, bf16", "TiTok", EAGER),
    ("vqgan", "VQGAN, bf16", "VQGAN", EAGER),
    ("jpeg", "VQGAN, as released", "VQGAN", RELEASED),
)


def _by_tokens(record: Row) -> str | None:
    rows = [r for r in Figures(record).rows if r["group"] == "encode, batch 8" and r["tokens"]]
    return _chart(rows, "tokens", "encode, ms an image", "Encode at batch 8 by tokens kept", 125.0)


def _by_batch(record: Row) -> str | None:
    found = Figures(record).rows
    rows = [r for r in found if r["stage"] == "encode" and r["group"] == f"encode, batch {r['batch']}"]
    rows = [r for r in rows if r["tokens"] in (128, 256) and r["system"] != "dove-base-256"]
    lines = [
        Line(key, name, [_point(r["batch"], r, 1e3 / r["batch"], "ms") for r in _of(rows, start, way)])
        for key, name, start, way in SERIES
        if key in ("dove", "vqgan", "jpeg")
    ]
    return _draw(lines, "batch", "encode, ms an image", "Encode by batch size")


def _generator(record: Row) -> str | None:
    rows = [r for r in Figures(record).rows if r["group"] == "generator" and r["stage"] == GENERATOR]
    lines = [Line("dove", "dove-base (dove_ext), stop found at n", [
        _point(r["tokens"], r, 125.0, "ms") for r in _of([r for r in rows if r["tokens"]], "dove-base-", OURS)
    ])]  # fmt: skip
    for key, name, way in (
        ("vqgan", "eager PyTorch, bf16", EAGER),
        ("jpeg", "eager PyTorch, fp32", "eager fp32"),
    ):
        lines.append(Line(key, name, [
            _point(n, r, 125.0, "ms") for r in rows if r["way"] == way for n in (32, 256)
        ]))  # fmt: skip
    return _draw(lines, "tokens", "generator + EOS, ms an image", "Generator by tokens kept")


def _by_size(record: Row) -> str | None:
    rows = [r for r in Figures(record).rows if r["group"] == "image size"]
    keys = {"encode": "dove", "VQGAN encoder": "vqgan", GENERATOR: "qdove"}
    lines = [
        Line(
            key, stage, [_point((r["size"] // 16) ** 2, r, 125.0, "ms") for r in rows if r["stage"] == stage]
        )
        for stage, key in keys.items()
    ]
    return _draw(lines, "K", "ms an image", "dove-base at 32 tokens by K (image size)")


def _of(rows: Sequence[Row], start: str, way: str) -> list[Row]:
    return [r for r in rows if r["system"].startswith(start) and r["way"] == way]


def _chart(rows: Sequence[Row], x: str, y: str, title: str, scale: float) -> str | None:
    lines = [
        Line(key, name, [_point(r["tokens"], r, scale, "ms") for r in _of(rows, start, way)])
        for key, name, start, way in SERIES
    ]
    return _draw(lines, x, y, title)


def _draw(lines: Sequence[Line], x: str, y: str, title: str) -> str | None:
    kept = [
        Line(line.key, line.name, sorted(line.points, key=lambda p: p.x)) for line in lines if line.points
    ]
    points = [p for line in kept for p in line.points]
    if len({p.x for p in points}) < 2:
        return None
    values = [v for p in points for v in (p.low, p.high) if v is not None]
    horizontal = axis("tokens", [p.x for p in points], log=True)
    return _file(
        kept, type(horizontal)(x, horizontal.low, horizontal.high, horizontal.log, horizontal.ticks),
        axis(y, values, log=True), title,
    )  # fmt: skip


def draw(record: Row) -> dict[str, tuple[str, str]]:
    """File name -> (what it shows, SVG); plots whose data the record lacks are left out."""
    found = {
        "bench-tokens.svg": ("Encode by tokens kept", _by_tokens(record)),
        "bench-batch.svg": ("Encode by batch size", _by_batch(record)),
        "bench-generator.svg": ("Generator and EOS by tokens kept", _generator(record)),
        "bench-size.svg": ("Encode by image size", _by_size(record)),
    }
    return {file: (name, svg) for file, (name, svg) in found.items() if svg is not None}
