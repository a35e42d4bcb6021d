"""`dove eval classify`: an MLP on pooled frozen tokens, at several token counts (3.2, Figure 5)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from dove_eval.datasets import ImageSet
from dove_eval.features import COUNTS, Extracted, describe
from dove_eval.heads import MLP, HeadSettings, Score
from dove_eval.plots import Line, Point, axis, line_chart
from dove_eval.report import Block, Plot, Section, Table
from dove_eval.systems import OWN
from dove_ext.cli.pictures import progress


def measure(extracted: Sequence[Extracted], settings: HeadSettings = MLP) -> dict[str, Any]:
    """Accuracy of every system: at each token count and own length for DOVE, once for the others (JSON)."""
    jobs = [(e, column) for e in extracted for column in columns(e)]
    series: dict[str, dict[str, Any]] = {}
    with progress(len(jobs), "classify") as bar:
        for e, column in jobs:
            entry = series.setdefault(
                e.system.key, {"system": e.system.key, "name": e.system.name, "points": {}}
            )
            entry["points"][column] = e.score(column, settings).to_json()
            bar.update()
    return {**describe(extracted[0]), "series": list(series.values()), "head": asdict(settings)}


def columns(e: Extracted) -> list[str]:
    """The feature columns that stand for whole images, not for hidden layers."""
    return [n for n in e.rows.names if n.startswith("tokens-") or n in ("latents", "thumbnail")]


def show(images: ImageSet, result: dict[str, Any], fit: str) -> Section:
    """The report's section."""
    lines, cells = [], []
    baselines = []
    for series in result["series"]:
        points = []
        for column, score in series["points"].items():
            text = Score(**score).text()
            point = column.removeprefix("tokens-")
            where = {OWN: "its own lengths", "latents": "all positions", "thumbnail": "16 x 16 thumbnail"}
            cells.append((f"{series['name']}, {where.get(point, f'{point} tokens')}", text))
            if point.isdigit():
                points.append(_point(float(point), score, f"{series['name']}, {point} tokens: {text} %"))
            elif point != OWN:
                baselines.append((series, score, text))
        if points:
            lines.append(Line(series["system"], series["name"], points))
    span = [p.x for line in lines for p in line.points] or [float(n) for n in COUNTS]
    span = [min(span), max(span)]
    for series, score, text in baselines:  # no token count of their own: level lines
        ends = [_point(x, score, f"{series['name']}: {text} %") for x in span]
        lines.append(Line(series["system"], series["name"], ends))
    values = [v for line in lines for p in line.points for v in (p.low, p.high) if v is not None]
    caption = (
        "Accuracy of an MLP on pooled tokens against token count; bands: one standard deviation over "
        f"{result['head']['seeds']} seeds. Chance is {100 / result['classes']:.1f} %."
    )
    chart = line_chart(lines, axis("tokens", span, log=True), axis("accuracy (%)", values), caption)
    blocks: list[Block] = [
        Plot(chart, caption),
        Table(
            ("frozen features", "test accuracy (%)"),
            cells,
            "Mean and standard deviation over seeds",
            beside=True,
        ),
    ]
    head = result["head"]
    method = [
        f"{result['train']} training and {result['test']} test images of {result['classes']} classes from "
        f"{images.source}, fitted by '{fit}'.",
        "DOVE: mean and maximum over the first tokens, concatenated. VQGAN: the same over all latents "
        "before quantisation. Raw pixels: a 16 x 16 thumbnail.",
        f"Head: one hidden layer of {head['hidden']}, GELU, standardised features, Adam "
        f"{head['learning_rate']} with cosine decay, {head['epochs']} epochs or {head['min_steps']} steps, "
        f"batches of {head['batch_size']}; weight decay out of {', '.join(map(str, head['weight_decays']))} "
        "and epoch chosen on a tenth of the training images.",
    ]
    return Section("classify", "Classification", _finding(result), blocks, method, result)


def _finding(result: dict[str, Any]) -> str:
    first = result["series"][0]
    scores = {column.removeprefix("tokens-"): s["accuracy"] for column, s in first["points"].items()}
    most = max((n for n in scores if n.isdigit()), key=int, default=OWN)
    where = "the lengths that it chooses" if most == OWN else f"{most} tokens"
    text = f"Frozen {first['name']} tokens give {100 * scores[most]:.1f} % at {where}"
    if most not in (OWN, "32") and "32" in scores:
        text += f" and {100 * scores['32']:.1f} % at 32 ({scores['32'] / max(scores[most], 1e-9):.0%} of it)"
    rest = []
    for s in result["series"][1:]:
        last = list(s["points"].values())[-1]
        rest.append(f"{s['name']} {100 * last['accuracy']:.1f} %")
    return text + (f"; {', '.join(rest)}." if rest else ".")


def _point(x: float, score: dict[str, Any], label: str) -> Point:
    value, deviation = 100 * score["accuracy"], 100 * score["deviation"]
    return Point(x, value, value - deviation, value + deviation, label)
