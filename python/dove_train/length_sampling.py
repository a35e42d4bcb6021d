"""Which lengths a run trains at, and the thresholds that its stop labels compare with."""

from __future__ import annotations

import math
from collections import deque

import numpy as np
import torch
from torch import Tensor

DEFAULT_TARGET = 90.0  # tokens, of 256
THRESHOLD_RATE = 0.02  # the largest share by which a step moves the sampled rule's threshold


def sample_numbers(seed: int, stream: int, first: int, count: int, *shape: int) -> np.ndarray:
    """Numbers in [0, 1) for the samples `first`, `first` + 1, ... of a run: float64 [count, *shape].

    They depend on the seed, the stream and a sample's place in the run alone, so they are the same for any
    number of processes and after a resumption.
    """
    rows = [np.random.default_rng((seed, stream, first + row)).random(shape) for row in range(count)]
    return np.stack(rows) if rows else np.empty((0, *shape))


def sample_lengths(seed: int, first: int, count: int, slots: int, full_share: float) -> Tensor:
    """A length for each of the samples `first`, `first` + 1, ... of a run: int32 [count].

    Log-uniform in 1..slots, or `slots` for a share of them. A sample's length depends on the seed and its
    place in the run alone, so it is the same for any number of processes and after a resumption.
    """
    lengths = np.empty(count, dtype=np.int32)
    for row, (full, uniform) in enumerate(sample_numbers(seed, 2, first, count, 2)):
        lengths[row] = slots if full < full_share else min(int((slots + 1) ** uniform), slots)
    return torch.from_numpy(lengths)


class RunningThreshold:
    """The paper's threshold: mean L_rec of the last `window` steps (2.2)."""

    def __init__(self, window: int = 100) -> None:
        self.losses: deque[float] = deque(maxlen=window)

    @property
    def empty(self) -> bool:
        """Whether `value` needs a loss to begin with."""
        return not self.losses

    def value(self, loss: float) -> float:
        """The threshold for a step, before its own loss (which stands in at the first step) is added."""
        return sum(self.losses) / len(self.losses) if self.losses else loss

    def update(self, loss: float, mean_length: float) -> None:
        """Add a step's mean L_rec; the length has no part in this rule."""
        self.losses.append(loss)

    def state(self) -> list[float]:
        """What a checkpoint keeps."""
        return list(self.losses)

    def restore(self, state: list[float]) -> None:
        """Go on from a checkpoint."""
        self.losses.clear()
        self.losses.extend(state)


class FixedThreshold:
    """The squared error of a promised quality, in pixels of [-1, 1]: nothing moves it."""

    empty = False

    def __init__(self, value: float) -> None:
        self.promised = value

    def value(self, loss: float) -> float:
        """The same at every step."""
        return self.promised

    def update(self, loss: float, mean_length: float) -> None:
        """Nothing has a part in this rule."""

    def state(self) -> list[float]:
        """What a checkpoint keeps."""
        return [self.promised]

    def restore(self, state: list[float]) -> None:
        """Go on from a checkpoint, whose run is the same and so is its promise."""


class TargetThreshold:
    """The sampled rule's threshold: moved slowly so that the mean length meets a target.

    A threshold set from the losses at the model's own lengths is a feedback loop: shorter lengths raise these
    losses, and a higher threshold shortens the lengths again. This one depends on the lengths only.
    """

    def __init__(self, target: float) -> None:
        self.target = target
        self.current = 0.0  # 0: not yet known

    @property
    def empty(self) -> bool:
        """Whether `value` needs a loss to begin with."""
        return self.current == 0

    def value(self, loss: float) -> float:
        """The threshold for a step; the first one is that step's mean loss."""
        if self.current == 0 and math.isfinite(loss):  # a step without a finite loss is skipped
            self.current = loss
        return self.current

    def update(self, loss: float, mean_length: float) -> None:
        """Raise the threshold when the model keeps too many tokens, lower it when too few."""
        error = max(-1.0, min(1.0, (mean_length - self.target) / self.target))
        self.current *= 1 + THRESHOLD_RATE * error

    def state(self) -> list[float]:
        """What a checkpoint keeps."""
        return [self.current]

    def restore(self, state: list[float]) -> None:
        """Go on from a checkpoint."""
        self.current = state[0]
