"""How sure a number is: percentile bootstrap over images, and a jackknife where resampling misleads."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

LEVEL = 0.95
RESAMPLES = 1000
SEED = 0


@dataclass(frozen=True)
class Estimate:
    """A value with its confidence interval (`LEVEL`), from `count` images."""

    value: float
    low: float
    high: float
    count: int

    def to_json(self) -> dict[str, Any]:
        """For the report's JSON."""
        return asdict(self)

    def text(self, digits: int = 2) -> str:
        """Such as "31.04 [30.80, 31.29]"."""
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
        values: [n, ...].
        resamples: how many.
        seed: of the draws; fixed, so that a report can be repeated.
    """
    random = np.random.default_rng(seed)
    count = len(values)
    draws = np.array([statistic(values[random.integers(count, size=count)]) for _ in range(resamples)])
    draws = draws[np.isfinite(draws)]
    value = float(statistic(values))
    low, high = _interval(draws) if len(draws) else (value, value)
    return Estimate(value, low, high, count)


def mean(values: np.ndarray, resamples: int = RESAMPLES, seed: int = SEED) -> Estimate:
    """Mean of [n] with its percentile bootstrap interval."""
    random = np.random.default_rng(seed)
    count = len(values)
    # One resample at a time: memory stays at one copy of the values.
    draws = np.array([values[random.integers(count, size=count)].mean() for _ in range(resamples)])
    low, high = _interval(draws)
    return Estimate(float(values.mean()), low, high, count)


def jackknife(
    value: float, without_group: Callable[[np.ndarray], float], count: int, groups: int = 10, seed: int = SEED
) -> Estimate:
    """Delete-a-group jackknife: a normal interval from the spread of `groups` values.

    For statistics that drawing with replacement biases, such as a Frechet distance, which falls when rows
    repeat.

    Args:
        value: on all rows.
        without_group: the statistic on the rows that a mask bool [count] keeps.
        count: rows.
        groups: how many; each is left out once.
        seed: of the assignment of rows to groups.
    """
    groups = min(groups, count)
    group = np.random.default_rng(seed).permutation(count) % groups
    left = np.array([without_group(group != g) for g in range(groups)])
    error = float(np.sqrt((groups - 1) / groups * np.square(left - left.mean()).sum()))
    return Estimate(value, value - 1.96 * error, value + 1.96 * error, count)


def _interval(draws: np.ndarray) -> tuple[float, float]:
    tail = (1 - LEVEL) / 2 * 100
    low, high = np.percentile(draws, [tail, 100 - tail])
    return float(low), float(high)
