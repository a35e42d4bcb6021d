"""`dove eval classify`: an MLP on pooled frozen tokens, at several token counts (3.2, Figure 5).

The paper pools "the final layer representations", which are its tokens. Where these are a linear code and a
semantic part, they are also pooled without the latter: what it adds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from dove_eval.datasets import ImageSet
from dove_eval.features import Extracted, describe, score_all
from dove_eval.heads import MLP, HeadSettings, Score
from dove_eval.plots import Line, Point, axis, line_chart
from dove_eval.report import Block, Plot, Section, Table
from dove_eval.settings import COUNTS
from dove_eval.systems import OWN

KINDS = {"tokens": "", "code": "code alone of "}
WHOLE = {"latents": "all positions", "thumbnail": "16 x 16 thumbnail"}


def measure(extracted: Sequence[Extracted], settings: HeadSettings = MLP) -> dict[str, Any]:
    """Accuracy of every system: at each token count and own length for DOVE, once for the others (JSON)."""
    series = score_all(extracted, columns, settings, "classify", "points")
    return {**describe(extracted[0]), "series": series, "head": asdict(settings)}


def columns(e: Extracted) -> list[str]:
    """The feature columns that stand for whole images, not for hidden layers."""
    return [n for n in e.rows.names if n.partition("-")[0] in KINDS or n in WHOLE]


def column_name(column: str) -> str:
    """A column for people."""
    kind, _, point = column.partition("-")
    if column in WHOLE:
        return WHOLE[column]
    return f"{KINDS[kind]}{'its own lengths' if point == OWN else f'{point} tokens'}"


def show(images: ImageSet, result: dict[str, Any], fit: str) -> Section:
    """The report's section."""
    lines, cells = [], []
    baselines = []
    for series in result["series"]:
        points: dict[str, list[Point]] = {kind: [] for kind in KINDS}
        for column, score in series["points"].items():
            text, name = Score(**score).text(), f"{series['name']}, {column_name(column)}"
            cells.append((name, text))
            kind, _, point = column.partition("-")
            if point.isdigit():
                points[kind].append(_point(float(point), score, f"{name}: {text} %"))
            elif column in WHOLE:
                baselines.append((series, score, text))
        for kind, name in (("tokens", "tokens"), ("code", "code alone")):
            if points[kind]:
                title = f"{series['name']}, {name}"
                lines.append(Line(series["system"], title, points[kind], hollow=kind == "code"))
    span = [p.x for line in lines for p in line.points] or [float(n) for n in COUNTS]
    span = [min(span), max(span)]
    for series, score, text in baselines:  # no token count of their own: level lines
        ends = [_point(x, score, f"{series['name']}: {text} %") for x in span]
        lines.append(Line(series["system"], series["name"], ends))
    values = [v for line in lines for p in line.points for v in (p.y, p.low, p.high) if v is not None]
    seeds = result["head"]["seeds"]
    caption = (
        "Accuracy of an MLP on pooled tokens against token count; "
        f"{f'bands: one standard deviation over {seeds} seeds' if seeds > 1 else 'one seed'}. "
        f"Chance is {100 / result['classes']:.1f} %."
    )
    chart = line_chart(lines, axis("tokens", span, log=True), axis("accuracy (%)", values), caption)
    blocks: list[Block] = [
        Plot(chart, caption),
        Table(
            ("frozen features", "test accuracy (%)"),
            cells,
            "Mean and standard deviation over seeds" if seeds > 1 else "One seed",
            beside=True,
        ),
    ]
    head = result["head"]
    method = [
        f"{result['train']} training and {result['test']} test images of {result['classes']} classes from "
        f"{images.source}, fitted by '{fit}'.",
        "DOVE: mean and maximum over the first tokens, concatenated; where they are a linear code and a "
        "semantic part, also without the latter. "
        "VQGAN: the same over all latents before quantisation. Raw pixels: a 16 x 16 thumbnail.",
        f"Head: one hidden layer of {head['hidden']}, GELU, standardised features, Adam "
        f"{head['learning_rate']} with cosine decay, {head['epochs']} epochs or {head['min_steps']} steps, "
        f"batches of {head['batch_size']}; weight decay out of {', '.join(map(str, head['weight_decays']))} "
        "and epoch chosen on a tenth of the training images.",
    ]
    return Section("classify", "Classification", _finding(result), blocks, method, result)


def _finding(result: dict[str, Any]) -> str:
    first, *others = result["series"]
    point = _most(first)
    text = f"Frozen {first['name']} tokens give {_at(first, 'tokens', point)}"
    if f"code-{point}" in first["points"]:
        text += f", without their semantic part {_at(first, 'code', point)}"
    rest = []
    for s in others:
        if f"tokens-{_most(s)}" in s["points"]:
            rest.append(f"{s['name']} tokens {_at(s, 'tokens', _most(s))}")
        else:
            rest.append(f"{s['name']} {100 * next(iter(s['points'].values()))['accuracy']:.1f} %")
    return "; ".join([text, *rest]) + "."


def _most(series: dict[str, Any]) -> str:
    """The largest token count of a series, or `OWN`."""
    counts = (column.partition("-")[2] for column in series["points"])
    return max((n for n in counts if n.isdigit()), key=int, default=OWN)


def _at(series: dict[str, Any], kind: str, point: str) -> str:
    """Such as "54.3 % at 256 tokens and 52.1 % at 32 (96% of it)"."""
    scores = {column: score["accuracy"] for column, score in series["points"].items()}
    most = scores[f"{kind}-{point}"]
    text = f"{100 * most:.1f} % at {'the lengths that it chooses' if point == OWN else f'{point} tokens'}"
    few = scores.get(f"{kind}-32")
    if point != "32" and few is not None:
        text += f" and {100 * few:.1f} % at 32 ({few / max(most, 1e-9):.0%} of it)"
    return text


def _point(x: float, score: dict[str, Any], label: str) -> Point:
    value = 100 * score["accuracy"]
    if score["deviation"] is None:  # of one seed
        return Point(x, value, label=label)
    deviation = 100 * score["deviation"]
    return Point(x, value, value - deviation, value + deviation, label)
