"""Classifiers on frozen features: one linear layer, or an MLP, several seeds and weight decays at once.

Every (seed, weight decay) is a copy of the head with its own weights; all copies take their steps together as
one batched product. A tenth of the training images, drawn anew for each seed, chooses among weight decays and
epochs; the test images are seen once, by the chosen head. Features stay on disk and are read batch by batch.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

HOLD_OUT = 10  # one training image in this many chooses decay and epoch


@dataclass(frozen=True)
class HeadSettings:
    """How a head is trained; written into the report."""

    hidden: int = 0  # width of the MLP's one hidden layer (GELU); 0: a single linear layer
    seeds: int = 3
    weight_decays: tuple[float, ...] = (1e-3, 1e-2, 1e-1, 1.0)  # decoupled, as in AdamW
    learning_rate: float = 3e-3  # falls to 0 along a cosine
    epochs: int = 60
    min_steps: int = 600  # more epochs than that where they would take fewer steps
    batch_size: int = 256


# Seven times this rate for 100 epochs gives DOVE's and VQGAN's features of CIFAR-10 about 2 points more and
# raw pixels 3 fewer: no one rate suits all (docs/results.md).
LINEAR = HeadSettings()
MLP = HeadSettings(hidden=256, weight_decays=(1e-2, 0.3), learning_rate=1e-3, epochs=30)


@dataclass(frozen=True)
class Score:
    """Test accuracy in 0..1: mean and standard deviation (n - 1; None of one) over seeds, and each seed's.

    `held_out` is the mean accuracy on the training images that chose decay and epoch; it chooses layers, too.
    """

    accuracy: float
    deviation: float | None
    seeds: tuple[float, ...]
    held_out: float

    def to_json(self) -> dict[str, Any]:
        """For the report's JSON."""
        return {**asdict(self), "seeds": list(self.seeds)}

    def text(self) -> str:
        """Percent, such as "54.3 ± 0.4"."""
        spread = "" if self.deviation is None else f" ± {100 * self.deviation:.1f}"
        return f"{100 * self.accuracy:.1f}{spread}"


class _Heads(nn.Module):
    """[S, n, D] to logits [S, R, n, C]: R heads for each of S seeds."""

    def __init__(self, seeds: int, repeats: int, width: int, classes: int, hidden: int) -> None:
        super().__init__()
        widths = [width, hidden, classes] if hidden else [width, classes]
        self.weights, self.biases = nn.ParameterList(), nn.ParameterList()
        for before, after in pairwise(widths):
            draws = [
                torch.randn(1, before, after, generator=torch.Generator().manual_seed(s))
                for s in range(seeds)
            ]
            start = torch.stack(draws) * (before**-0.5 if hidden else 0.01)  # [S, 1, before, after]
            self.weights.append(start.repeat(1, repeats, 1, 1))
            self.biases.append(torch.zeros(seeds, repeats, 1, after))

    def forward(self, x: Tensor) -> Tensor:
        out = x[:, None]
        for i, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            out = (F.gelu(out) if i else out) @ weight + bias
        return out


@torch.enable_grad()
def train_and_test(
    features: np.ndarray,
    labels: np.ndarray,
    train: np.ndarray,
    test: np.ndarray,
    settings: HeadSettings,
) -> Score:
    """Train heads on the features' rows `train`, report accuracy on the rows `test`.

    Args:
        features: float32 [N, D], may be memory-mapped.
        labels: int64 [N], classes 0..C-1.
        train: row indices int64, at least two.
        test: row indices int64, at least one.
        settings: see `HeadSettings`.
    """
    classes = int(labels.max()) + 1
    seeds, repeats = settings.seeds, len(settings.weight_decays)
    orders = [np.random.default_rng((s, 0)).permutation(train) for s in range(seeds)]
    cut = max(1, len(train) // HOLD_OUT)
    held_out = np.stack([order[:cut] for order in orders])
    fitted = np.stack([order[cut:] for order in orders])
    shift, scale = _moments(features, train)

    def load(rows: np.ndarray) -> Tensor:  # [S, n] to [S, n, D]
        return (torch.from_numpy(features[rows.ravel()]).unflatten(0, rows.shape) - shift) / scale

    heads = _Heads(seeds, repeats, features.shape[1], classes, settings.hidden)
    optimizer = torch.optim.Adam(heads.parameters(), lr=settings.learning_rate, betas=(0.9, 0.99))
    steps = -(-fitted.shape[1] // settings.batch_size)
    decay = torch.tensor(settings.weight_decays)[:, None, None]
    best = torch.full((seeds, repeats), -1.0)
    kept = [p.detach().clone() for p in heads.parameters()]
    epochs = max(settings.epochs, -(-settings.min_steps // steps))
    for epoch in range(epochs):
        shuffled = np.stack(
            [np.random.default_rng((s, 1, epoch)).permutation(fitted[s]) for s in range(seeds)]
        )
        for step in range(steps):
            rows = shuffled[:, step * settings.batch_size : (step + 1) * settings.batch_size]
            rate = settings.learning_rate * (1 + np.cos(np.pi * (epoch + step / steps) / epochs)) / 2
            logits = heads(load(rows))
            target = torch.from_numpy(labels[rows])[:, None].expand(-1, repeats, -1)
            # The sum over heads gives each head the gradient of its own mean loss.
            loss = F.cross_entropy(logits.flatten(0, 2), target.flatten()) * (seeds * repeats)
            optimizer.param_groups[0]["lr"] = rate
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            with torch.no_grad():
                for weight in heads.weights:
                    weight.mul_(1 - rate * decay)
        right = _accuracy(heads, load, labels, held_out, settings.batch_size)
        better = right >= best  # of equals the later, which has seen more
        best = torch.where(better, right, best)
        for keep, now in zip(kept, heads.parameters(), strict=True):
            keep[better] = now.detach()[better]
    with torch.no_grad():
        for keep, now in zip(kept, heads.parameters(), strict=True):
            now.copy_(keep)
    right = _accuracy(heads, load, labels, np.stack([test] * seeds), settings.batch_size)
    chosen = right.gather(1, best.argmax(1, keepdim=True))[:, 0].double()
    deviation = float(chosen.std()) if seeds > 1 else None
    held = float(best.max(1).values.mean())
    return Score(float(chosen.mean()), deviation, tuple(chosen.tolist()), held)


@torch.no_grad()
def _accuracy(heads: _Heads, load: Any, labels: np.ndarray, rows: np.ndarray, batch_size: int) -> Tensor:
    """Share of right answers of every head: [S, R]."""
    right: Tensor | float = 0.0
    for start in range(0, rows.shape[1], batch_size):
        part = rows[:, start : start + batch_size]
        answers = heads(load(part)).argmax(-1)  # [S, R, n]
        right = right + (answers == torch.from_numpy(labels[part])[:, None]).sum(-1).float()
    return torch.as_tensor(right) / rows.shape[1]


def _moments(features: np.ndarray, rows: np.ndarray, batch_size: int = 1024) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each feature over the training rows: [D] and [D]."""
    total, square = 0.0, 0.0
    for start in range(0, len(rows), batch_size):
        part = features[rows[start : start + batch_size]].astype(np.float64)
        total, square = total + part.sum(0), square + np.square(part).sum(0)
    mean = total / len(rows)
    deviation = np.sqrt(np.maximum(square / len(rows) - np.square(mean), 0))
    # A feature that never changes tells nothing; dividing by its rounding error would make it loud.
    deviation[deviation < 1e-6 * (1 + np.abs(mean))] = np.inf
    return torch.from_numpy(mean).float(), torch.from_numpy(deviation).float()
