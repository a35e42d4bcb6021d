"""How sure a number is: percentile bootstrap over images, and a jackknife where resampling misleads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy import stats

LEVEL = 0.95
RESAMPLES = 1000
AT_ONCE = 1 << 20  # values that `mean` draws at a time
SEED = 0
FEWEST = 10  # images; of fewer, percentiles cover far less than they say (of 5 normal values 82%)


@dataclass(frozen=True)
class Estimate:
    """A value with its confidence interval (`LEVEL`), from `count` images; None where they are too few."""

    value: float
    low: float | None
    high: float | None
    count: int

    def to_json(self) -> dict[str, Any]:
        """For the report's JSON."""
        return asdict(self)

    def text(self, digits: int = 2) -> str:
        """Such as "31.04 [30.80, 31.29]"."""
        if self.low is None or self.high is None:
            return f"{self.value:.{digits}f}"
        return f"{self.value:.{digits}f} [{self.low:.{digits}f}, {self.high:.{digits}f}]"


def bootstrap(
    statistic: Callable[[np.ndarray], float],
    values: np.ndarray,
    resamples: int = RESAMPLES,
    seed: int = SEED,
) -> Estimate:
    """Percentile bootstrap over rows (images are drawn with replacement; pairs stay together).

    Args:
        statistic: of rows [n, ...]. A resample for which it is not finite is left out.
        values: [n, ...]; fewer than `FEWEST` rows have no interval.
        resamples: how many.
        seed: of the draws; fixed, so that a report can be repeated.
    """
    random = np.random.default_rng(seed)
    count = len(values)
    value = float(statistic(values))
    if count < FEWEST:
        return Estimate(value, None, None, count)
    # One resample at a time: memory stays at one copy of the values.
    draws = np.array([statistic(values[random.integers(count, size=count)]) for _ in range(resamples)])
    return _interval(value, draws, count)


def _interval(value: float, draws: np.ndarray, count: int) -> Estimate:
    draws = draws[np.isfinite(draws)]
    if not len(draws):
        return Estimate(value, None, None, count)
    tail = (1 - LEVEL) / 2 * 100
    low, high = np.percentile(draws, [tail, 100 - tail])
    return Estimate(value, float(low), float(high), count)


def mean(values: np.ndarray, resamples: int = RESAMPLES, seed: int = SEED) -> Estimate:
    """Mean of [n] with its percentile bootstrap interval: `bootstrap`'s, many resamples at a time."""
    random = np.random.default_rng(seed)
    count, value = len(values), float(values.mean())
    if count < FEWEST:
        return Estimate(value, None, None, count)
    many = max(1, AT_ONCE // count)
    parts = [min(many, resamples - done) for done in range(0, resamples, many)]
    draws = [values[random.integers(count, size=(part, count))].mean(axis=1) for part in parts]
    return _interval(value, np.concatenate(draws).astype(np.float64), count)


def leave_out(count: int, groups: int = 10, seed: int = SEED) -> list[np.ndarray]:
    """Masks bool [count] for a jackknife: each leaves out one of at most `groups` groups of rows."""
    groups = min(groups, count)
    group = np.random.default_rng(seed).permutation(count) % groups
    return [group != g for g in range(groups)]


def jackknife(value: float, left: Sequence[float], count: int) -> Estimate:
    """Delete-a-group jackknife: an interval of Student's t from the spread of a statistic.

    For statistics that drawing with replacement biases, such as a Frechet distance, which falls when rows
    repeat.

    Args:
        value: on all rows.
        left: on the rows of each mask of `leave_out`; without any there is no interval.
        count: rows.
    """
    if not left:
        return Estimate(value, None, None, count)
    groups = len(left)
    error = float(np.sqrt((groups - 1) / groups * np.square(left - np.mean(left)).sum()))
    half = float(stats.t.ppf((1 + LEVEL) / 2, groups - 1)) * error
    return Estimate(value, value - half, value + half, count)
