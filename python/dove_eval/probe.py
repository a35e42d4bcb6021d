"""`dove eval probe`: one linear layer on every hidden layer of every system (3.4, Table 5)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from dove_eval.datasets import ImageSet
from dove_eval.features import Extracted, describe, score_all
from dove_eval.heads import LINEAR, HeadSettings, Score
from dove_eval.plots import Bar, bars
from dove_eval.report import Block, Plot, Section, Table
from dove_eval.systems import Dove, Pixels, Vqgan

# What stands for a system without a hidden layer to choose.
FIXED = {"vqgan": "before-quantisation", "pixels": "thumbnail"}


def layers(e: Extracted) -> list[str]:
    """The columns that a linear probe is put on."""
    if isinstance(e.system, Dove):
        return [n for n in e.rows.names if n.startswith(("image-", "time-"))]
    if isinstance(e.system, Vqgan):
        return [*(n for n in e.rows.names if n.startswith("level-")), "before-quantisation"]
    assert isinstance(e.system, Pixels)
    return ["thumbnail"]


def measure(extracted: Sequence[Extracted], settings: HeadSettings = LINEAR) -> dict[str, Any]:
    """Accuracy at every layer; chosen is the layer that does best on held-out training images (JSON)."""
    series = score_all(extracted, layers, settings, "probe", "layers")
    for entry in series:
        entry["chosen"] = max(entry["layers"], key=lambda name: entry["layers"][name]["held_out"])
    return {**describe(extracted[0]), "series": series, "head": asdict(settings)}


def show(images: ImageSet, result: dict[str, Any], fit: str) -> Section:
    """The report's section."""
    rows, cells = [], []
    for series in result["series"]:
        chosen = series["layers"][series["chosen"]]
        rows.append(_bar(series, series["chosen"], chosen))
        fixed = FIXED.get(series["system"])
        if fixed is not None and fixed != series["chosen"]:
            rows.append(_bar(series, fixed, series["layers"][fixed]))
        for layer, score in series["layers"].items():
            star = " (chosen)" if layer == series["chosen"] else ""
            cells.append(
                (
                    series["name"],
                    layer_name(layer) + star,
                    Score(**score).text(),
                    f"{100 * score['held_out']:.1f}",
                )
            )
    seeds = result["head"]["seeds"]
    caption = (
        "Test accuracy (%) of a linear layer on frozen features, "
        f"{f'mean ± standard deviation over {seeds} seeds' if seeds > 1 else 'one seed'}. "
        f"Chance is {100 / result['classes']:.1f} %."
    )
    blocks: list[Block] = [
        Plot(bars(rows, "%", caption), caption),
        Table(("system", "layer", "test (%)", "held out (%)"), cells, "All layers swept", beside=True),
    ]
    head = result["head"]
    method = [
        f"{result['train']} training and {result['test']} test images of {result['classes']} classes from "
        f"{images.source}, fitted by '{fit}'.",
        "A layer's feature is its mean over positions: for DOVE over the image's or the time positions of "
        "the generator, for VQGAN over the grid of an encoder level or of the latents before quantisation. "
        "Raw pixels: a 16 x 16 thumbnail.",
        "The layer of each system is the one that does best on a tenth of the training images; the test "
        "images play no part in the choice.",
        f"One linear layer, standardised features, Adam {head['learning_rate']} with cosine decay, "
        f"{head['epochs']} epochs, batches of {head['batch_size']}, at least {head['min_steps']} steps; "
        f"weight decay out of {', '.join(map(str, head['weight_decays']))} and epoch chosen on the same "
        "tenth.",
        "For comparison, the paper on all of CIFAR-10: DOVE 54.31, VQGAN 41.23.",
    ]
    return Section("probe", "Linear probe", _finding(result), blocks, method, result, _tiles(result))


def layer_name(column: str) -> str:
    """A column for people."""
    kind, _, number = column.rpartition("-")
    names = {"image": "image positions", "time": "time positions"}
    if kind in names:
        return f"layer {number}, {names[kind]}" if number != "0" else f"input, {names[kind]}"
    if kind == "level":
        return f"encoder level {number}"
    return {"before-quantisation": "before quantisation", "thumbnail": "thumbnail"}[column]


def _bar(series: dict[str, Any], layer: str, score: dict[str, Any]) -> Bar:
    text = Score(**score).text()
    accuracy, deviation = 100 * score["accuracy"], 100 * (score["deviation"] or 0.0)
    return Bar(series["system"], series["name"], layer_name(layer), accuracy, deviation, text)


def _finding(result: dict[str, Any]) -> str:
    best = [(s["name"], s["layers"][s["chosen"]]["accuracy"], s["chosen"]) for s in result["series"]]
    name, accuracy, layer = best[0]
    where = f"{name}'s {layer_name(layer)}"
    text = f"A linear layer on {where} is right on {100 * accuracy:.1f} % of the test images"
    rest = [f"{100 * (accuracy - other):+.1f} points against {n}" for n, other, _ in best[1:]]
    return text + (f": {', '.join(rest)}." if rest else ".")


def _tiles(result: dict[str, Any]) -> list[tuple[str, str]]:
    first = result["series"][0]
    value = 100 * first["layers"][first["chosen"]]["accuracy"]
    return [(f"{value:.1f} %", f"linear probe, {result['classes']} classes")]
