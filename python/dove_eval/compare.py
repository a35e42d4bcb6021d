"""`dove eval compare`: two models on the same images, with paired differences."""

from __future__ import annotations

from typing import Any

import numpy as np

from dove_eval.bootstrap import LEVEL, Estimate, mean
from dove_eval.datasets import ImageSet
from dove_eval.plots import Line, Point, axis, line_chart
from dove_eval.reconstruction import METRICS, Setup, measured
from dove_eval.report import Block, Pictures, Plot, Section, Table
from dove_eval.rows import Rows
from dove_eval.systems import OWN, Dove
from dove_ext.images.files import to_pil

SHOWN = 3  # images with the largest differences either way


def summarise(rows: Rows, setup: Setup) -> dict[str, Any]:
    """Mean paired difference, first model minus second, at every point both have (JSON)."""
    first, second = setup.systems[:2]
    names = [n for n in METRICS if f"{first.key}-{OWN}-{n}" in rows.names]
    points = []
    for point in measured(rows, first.key):
        if point not in measured(rows, second.key):
            continue
        entry: dict[str, Any] = {"point": point}
        for name in ("tokens", *names):
            ours, theirs = (rows.values(f"{s.key}-{point}-{name}") for s in (first, second))
            entry[name] = {
                "first": float(ours.mean()),
                "second": float(theirs.mean()),
                "difference": mean(ours - theirs).to_json(),
                "first_larger": float((ours > theirs).mean()),
            }
        points.append(entry)
    return {"images": len(rows.good), "first": first.name, "second": second.name, "points": points}


def show(images: ImageSet, size: int, rows: Rows, setup: Setup) -> Section:
    """The report's section."""
    result = summarise(rows, setup)
    first, second = result["first"], result["second"]
    cells = []
    for p in result["points"]:
        for name in ("tokens", *(n for n in METRICS if n in p)):
            if name == "tokens" and p["point"] != OWN:
                continue
            heading, digits, better = METRICS.get(name, ("tokens", 1, ""))
            e = Estimate(**p[name]["difference"])
            sure = e.low is not None and e.high is not None and not e.low <= 0 <= e.high
            winner = first if (e.value > 0) == (better == "higher") else second
            where = "own length" if p["point"] == OWN else f"{p['point']} tokens"
            cells.append(
                (f"{heading}, {where}", f"{p[name]['first']:.{digits}f}", f"{p[name]['second']:.{digits}f}",
                 _signed(e, digits), f"{p[name]['first_larger']:.0%}", winner if sure and better else "")
            )  # fmt: skip
    fixed = [p for p in result["points"] if p["point"] != OWN]
    line = Line(
        "dove",
        f"{first} minus {second}",
        [_mark(float(p["point"]), p["psnr"]["difference"], p["point"]) for p in fixed],
    )
    spread = [v for m in line.points for v in (m.low, m.high) if v is not None]
    caption = (
        f"Difference in PSNR (dB) at equal token counts, {first} minus {second}; above 0, {first} is better."
    )
    x, y = axis("tokens", [m.x for m in line.points], log=True), axis("difference (dB)", [0.0, *spread])
    heads = ("", first, second, "difference", f"{first} larger", "better")
    blocks: list[Block] = [
        Plot(line_chart([line], x, y, caption), caption),
        Table(
            heads, cells, f"Paired differences on {result['images']} images, {LEVEL:.0%} bootstrap intervals"
        ),
        *_extremes(images, size, rows, setup),
    ]
    method = [
        f"{result['images']} images from {images.source}, fitted by '{setup.fit}'; both models see the same "
        "pixels.",
        "The bootstrap draws images; the two values of an image stay together. 'better' is named where the "
        "interval leaves out 0.",
    ]
    own = next(p for p in result["points"] if p["point"] == OWN)
    psnr, tokens = Estimate(**own["psnr"]["difference"]), Estimate(**own["tokens"]["difference"])
    finding = (
        f"At their own lengths {first} is {abs(psnr.value):.2f} dB {'above' if psnr.value >= 0 else 'below'} "
        f"{second} with {abs(tokens.value):.1f} {'more' if tokens.value >= 0 else 'fewer'} tokens an image."
    )
    return Section("compare", f"{first} and {second}", finding, blocks, method, result)


def _signed(e: Estimate, digits: int) -> str:
    if e.low is None or e.high is None:
        return f"{e.value:+.{digits}f}"
    return f"{e.value:+.{digits}f} [{e.low:+.{digits}f}, {e.high:+.{digits}f}]"


def _mark(x: float, e: dict[str, Any], point: str) -> Point:
    return Point(x, e["value"], e["low"], e["high"], f"{point} tokens: {e['value']:+.3f} dB")


def _extremes(images: ImageSet, size: int, rows: Rows, setup: Setup) -> list[Pictures]:
    first, second = setup.systems[:2]
    assert isinstance(first, Dove) and isinstance(second, Dove)
    gap = rows.values(f"{first.key}-{OWN}-psnr") - rows.values(f"{second.key}-{OWN}-psnr")
    order = np.argsort(-gap, kind="stable")
    ahead, behind = order[gap[order] > 0][:SHOWN], order[gap[order] < 0][::-1][:SHOWN]
    chosen = rows.good[np.concatenate([ahead, behind])].tolist()
    if not chosen:
        return []
    _, pixels = images.read(chosen, size, setup.fit)
    assert pixels is not None
    grid: list[list[Any]] = [[] for _ in chosen]
    for b, picture in enumerate(to_pil((pixels + 1) / 2)):
        grid[b].append((picture, images.items[chosen[b]].name.rsplit("/", 1)[-1]))
    for system in (first, second):
        own = next(r for r in system.reconstruct(pixels, ()) if r.point == OWN)
        for b, picture in enumerate(to_pil((own.images + 1) / 2)):
            decibel = rows[f"{system.key}-{OWN}-psnr"][chosen[b]]
            grid[b].append((picture, f"{int(own.tokens[b])} tokens, {decibel:.1f} dB"))
    caption = (
        f"The {len(ahead)} images on which {first.name} is furthest ahead in PSNR at its own length, then "
        f"the {len(behind)} on which {second.name} is."
    )
    return [Pictures(("original", first.name, second.name), grid, caption)]
