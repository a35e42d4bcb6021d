"""What the report says about reconstruction: examples, curves, tables."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import PIL
from PIL import features as pil_features

from dove_eval import quality
from dove_eval.bootstrap import LEVEL, RESAMPLES, Estimate
from dove_eval.datasets import ImageSet
from dove_eval.plots import Line, Point, axis, line_chart, number
from dove_eval.reconstruction import METRICS, Setup, monotone, summarise
from dove_eval.report import Block, Pictures, Plot, Section, Table
from dove_eval.rows import Rows
from dove_eval.systems import OWN, Codec, Dove
from dove_ext.images.files import to_pil
from dove_ext.metrics import PSNR_CEILING, psnr

EXAMPLES = 5


def show(images: ImageSet, size: int, rows: Rows, setup: Setup) -> Section:
    """The report's section."""
    result = summarise(rows, setup)
    model = setup.systems[0]
    lines = {name: _lines(result, name) for name in (*METRICS, "frechet")}
    headings = {name: heading for name, (heading, _, _) in METRICS.items()}
    headings |= {"perceptual": result["perceptual"] or "", "frechet": result["frechet"] or ""}
    blocks: list[Block] = [examples(images, size, setup, rows.good)]
    for name, arrow in (
        ("psnr", "higher"),
        ("ssim", "higher"),
        ("perceptual", "lower"),
        ("frechet", "lower"),
    ):
        if lines[name]:
            blocks.append(
                _chart(lines[name], headings[name], f"{headings[name]} against tokens: {arrow} is better.")
            )
    blocks.append(_bytes_chart(result))
    if result["rate"]:
        cells = [
            (r["name"], str(r["quality"]), f"{r['bytes']:.0f}", f"{r['psnr']:.2f}") for r in result["rate"]
        ]
        caption = "JPEG and WebP at fixed quality settings: mean file size and PSNR"
        blocks.append(Table(("codec", "quality", "bytes", "PSNR (dB)"), cells, caption, beside=True))
    blocks.append(_table(result))
    method = _method(result, rows, setup, images)
    result["monotone"] = monotone(result)
    own = next(p for s in result["series"] for p in s["points"] if p["point"] == OWN)
    fixed = [p for p in result["series"][0]["points"] if p["point"] != OWN]
    finding = (
        f"{model.name} reaches {own['psnr']['value']:.1f} dB with the {own['tokens']['value']:.0f} tokens it "
        f"chooses on average; fixed lengths run from {fixed[0]['psnr']['value']:.1f} dB at "
        f"{fixed[0]['point']} tokens to {fixed[-1]['psnr']['value']:.1f} dB at {fixed[-1]['point']}."
    )
    tiles = [
        (f"{own['tokens']['value']:.0f}", "tokens an image on average, chosen by the model"),
        (f"{own['psnr']['value']:.1f} dB", "PSNR at these lengths"),
    ]
    return Section("reconstruction", "Reconstruction", finding, blocks, method, result, tiles)


def _lines(result: dict[str, Any], metric: str, across: str = "tokens") -> list[Line]:
    lines = []
    for series in result["series"]:
        points, star = [], None
        for p in series["points"]:
            if metric not in p:
                continue
            e = Estimate(**p[metric])
            text = (
                f"{series['name']}, {number(p['tokens']['value'])} tokens, {number(p['bytes']['value'])} "
                f"bytes: {e.text(3)}"
            )
            mark = Point(p[across]["value"], e.value, e.low, e.high, text)
            if p["point"] == OWN:
                star = mark
            else:
                points.append(mark)
        if points:
            lines.append(Line(series["system"], series["name"], points, star=star))
    return lines


def _chart(lines: list[Line], heading: str, caption: str) -> Plot:
    marks = _marks(lines)
    x = axis("tokens", [p.x for p in marks], log=True)
    y = axis(heading, [v for p in marks for v in (p.low, p.high) if v is not None])
    star = " The star is the model's own choice." if any(line.star for line in lines) else ""
    return Plot(line_chart(lines, x, y, caption), caption + star)


def _marks(lines: list[Line]) -> list[Point]:
    return [p for line in lines for p in [*line.points, *([line.star] if line.star else [])]]


def _bytes_chart(result: dict[str, Any]) -> Plot:
    lines = [line for line in _lines(result, "psnr", "bytes") if line.key not in ("jpeg", "webp")]
    for key in ("jpeg", "webp"):
        rate = [r for r in result["rate"] if r["system"] == key]
        if rate:
            points = [
                Point(
                    r["bytes"],
                    r["psnr"],
                    label=f"{r['name']} quality {r['quality']}: {r['bytes']:.0f} bytes, {r['psnr']:.2f} dB",
                )
                for r in rate
            ]
            lines.append(Line(key, f"{rate[0]['name']} at fixed qualities", points))
    marks = _marks(lines)
    caption = "PSNR against bytes. Tokens are kept as float16 without entropy coding."
    if result["rate"]:
        caption += " They are made for transformers, picture codecs for storage."
    x = axis("bytes an image", [p.x for p in marks], log=True)
    return Plot(line_chart(lines, x, axis("PSNR (dB)", [p.y for p in marks]), "PSNR against bytes"), caption)


def _table(result: dict[str, Any]) -> Table:
    names = [n for n in (*METRICS, "frechet") if any(n in p for s in result["series"] for p in s["points"])]
    heads = {n: METRICS[n][0] if n in METRICS else "" for n in names}
    heads |= {"perceptual": result["perceptual"] or "", "frechet": result["frechet"] or ""}
    digits = {n: METRICS[n][1] if n in METRICS else 2 for n in names}
    cells = []
    for series in result["series"]:
        for p in series["points"]:
            if series["system"] in ("jpeg", "webp"):
                row = [f"{series['name']} in the bytes of {p['point']} tokens", ""]
            elif p["point"] == OWN:
                row = [f"{series['name']}, its own length", f"{p['tokens']['value']:.1f}"]
            else:
                row = [f"{series['name']}, {p['point']} tokens", p["point"]]
            row.append(f"{p['bytes']['value']:.0f}")
            cells.append([*row, *(Estimate(**p[n]).text(digits[n]) if n in p else "" for n in names)])
    caption = f"Mean of {result['images']} images with {LEVEL:.0%} intervals in brackets"
    return Table(("system", "tokens", "bytes", *(heads[n] for n in names)), cells, caption)


def examples(images: ImageSet, size: int, setup: Setup, good: np.ndarray) -> Pictures:
    """A few images, evenly spread, at every length."""
    model = setup.systems[0]
    assert isinstance(model, Dove)
    chosen = [int(good[(2 * i + 1) * len(good) // (2 * EXAMPLES)]) for i in range(min(EXAMPLES, len(good)))]
    _, pixels = images.read(chosen, size, setup.fit)
    assert pixels is not None
    results = list(model.reconstruct(pixels, setup.counts))
    columns = ["original", *(f"{r.point} tokens" if r.point != OWN else "its own length" for r in results)]
    grid = []
    for b, index in enumerate(chosen):
        row = [(to_pil((pixels[b] + 1) / 2)[0], Path(images.items[index].name).name)]
        for r in results:
            shown = quality.as_shown(r.images[b : b + 1])
            decibel = f"{float(psnr(shown, pixels[b : b + 1], black=-1.0, ceiling=PSNR_CEILING)):.1f} dB"
            text = f"{int(r.tokens[b])} tokens, {decibel}" if r.point == OWN else decibel
            row.append((to_pil((r.images[b] + 1) / 2)[0], text))
        grid.append(row)
    return Pictures(columns, grid, f"{model.name}: images evenly spread over the set, not chosen.")


def _method(result: dict[str, Any], rows: Rows, setup: Setup, images: ImageSet) -> list[str]:
    costs = [f"{s.name} {s.cost}" for s in setup.systems if not isinstance(s, Codec)]
    lines = [
        f"{result['images']} images from {images.source}"
        + (f", {len(images.failed)} unreadable ones left out" if images.failed else "")
        + f"; fitted to the model's square by '{setup.fit}'; reconstructions rounded to 8 bits.",
        f"Brackets are {LEVEL:.0%} percentile bootstrap intervals over images ({RESAMPLES} resamples).",
        "PSNR is the mean of the images' PSNR; L1, MSE and SSIM (11 x 11 Gaussian window, sigma 1.5) take "
        "values in 0..1.",
        f"Bytes of a token: {'; '.join(costs)}. No entropy coding, no header.",
    ]
    if result["rate"]:
        lines.append(
            "JPEG and WebP: the highest quality whose file, headers included, fits into the bytes of that "
            f"many tokens of {setup.systems[0].name}; quality 1 where none fits, 100 where all do. Pillow "
            f"{PIL.__version__}, JPEG library {pil_features.version('jpg')}, WebP "
            f"{pil_features.version('webp')}."
        )
    if setup.features is not None:
        lines.append(
            f"{setup.features.name}: {setup.features.protocol}; {result['images']} images on both sides, "
            "which biases the value upwards against larger sets: compare only values of the same count. "
            "Intervals: jackknife over ten groups, since drawing with replacement would bias it."
        )
    if setup.distance is not None:
        lines.append(f"Perceptual distance: {setup.distance.name}.")
    return lines
