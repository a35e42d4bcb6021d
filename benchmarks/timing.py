"""Timing of candidates in turns, and its statistics.

Two candidates are never timed one after the other but in turns, and what is reported is the median of the
ratios of neighbouring runs: a load that comes and goes on the machine then strikes both alike.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any


def quantile(values: Sequence[float], share: float) -> float:
    """The value below which `share` (0..1) of `values` lies, linearly interpolated."""
    ordered = sorted(values)
    position = share * (len(ordered) - 1)
    below = int(position)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (position - below) * (ordered[above] - ordered[below])


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median with the 20% and 80% quantiles."""
    return {
        "median": statistics.median(values),
        "q20": quantile(values, 0.2),
        "q80": quantile(values, 0.8),
    }


def interleave(
    candidates: Mapping[str, Callable[[], Any]],
    *,
    seconds: float = 2.0,
    min_rounds: int = 5,
    max_rounds: int = 200,
    warmup: int = 2,
    slow: Collection[str] = (),
) -> dict[str, list[float]]:
    """Time the candidates in turns, one call of each per round.

    Args:
        candidates: name -> function without arguments. On a GPU the function must synchronise.
        seconds: stop after the round that exceeds this (never before `min_rounds`).
        min_rounds: at least so many rounds.
        max_rounds: at most so many rounds.
        warmup: unmeasured rounds before the first.
        slow: candidates that are left out of the warm-up and of the rounds behind the first `min_rounds`.

    Returns:
        dict: name -> seconds per call, one entry per round; entry i of all names is from the same round.
    """
    for _ in range(warmup):
        for name, call in candidates.items():
            if name not in slow:
                call()
    times: dict[str, list[float]] = {name: [] for name in candidates}
    end = time.perf_counter() + seconds
    for done in range(max_rounds):
        if done >= min_rounds and time.perf_counter() > end:
            break
        for name, call in candidates.items():
            if name in slow and done >= min_rounds:
                continue
            start = time.perf_counter()
            call()
            times[name].append(time.perf_counter() - start)
    return times


def compare(times: Mapping[str, Sequence[float]], ours: str) -> dict[str, Any]:
    """Summarise what `interleave` measured.

    Returns:
        dict: "rounds"; "time_us": name -> spread; "speedup": other name -> spread of other / ours, round by
        round (above 1: ours is faster).
    """
    mine = times[ours]
    return {
        "rounds": len(mine),
        "time_us": {name: spread([1e6 * t for t in values]) for name, values in times.items()},
        "speedup": {
            name: spread([other / own for other, own in zip(values, mine, strict=True)])
            for name, values in times.items()
            if name != ours
        },
    }
