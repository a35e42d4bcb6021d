"""Whether p_eos is a probability: how often a prefix is as good as promised, against what it says."""

from __future__ import annotations

from typing import Any

import numpy as np

from dove_eval.plots import Line, Point, axis, line_chart
from dove_eval.report import Block, Plot

BINS = 10


def summarise(probability: np.ndarray, good: np.ndarray) -> dict[str, Any]:
    """Bins of equal width and the expected calibration error (arXiv 1706.04599, Eq. 3).

    Args:
        probability: [N], p_eos, 0..1.
        good: bool [N], whether the prefix had the promised quality.

    Returns:
        dict: "error", the mean over all prefixes of |mean p_eos - share that was good| of their bin;
        "prefixes", N; and "bins", the ones that are not empty: "prefixes", "predicted", "good".
    """
    bins, error = [], 0.0
    number = np.minimum((probability * BINS).astype(int), BINS - 1)
    for i in range(BINS):
        inside = number == i
        if not inside.any():
            continue
        predicted, share = float(probability[inside].mean()), float(good[inside].mean())
        bins.append({"prefixes": int(inside.sum()), "predicted": predicted, "good": share})
        error += abs(predicted - share) * inside.mean()
    return {"error": float(error), "prefixes": len(probability), "bins": bins}


def plot(result: dict[str, Any], key: str, name: str) -> Block:
    """The reliability curve of `summarise`'s result, in a system's colour."""
    points = [
        Point(
            b["predicted"],
            b["good"],
            label=f"{b['prefixes']} prefixes: {b['predicted']:.2f}, {b['good']:.2f}",
        )
        for b in result["bins"]
    ]
    # Where the curve of a perfect p_eos runs.
    ideal = [Point(v, v, label=f"{v:.0f}") for v in (0.0, 1.0)]
    caption = (
        f"Share of prefixes with the promised quality against p_eos, in {BINS} bins of its range; expected "
        f"calibration error {result['error']:.3f}."
    )
    lines = [Line(key, name, points), Line(key, "as predicted", ideal, hollow=True)]
    x, y = axis("p_eos", [0.0, 1.0], zero=True), axis("share as good as promised", [0.0, 1.0], zero=True)
    return Plot(line_chart(lines, x, y, caption), caption)
