"""AdamW over what a stage trains, its learning rate, and its state whole, however it is spread."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from dove_train.distributed import World
from dove_train.settings import Settings, Stage

# The shares of a stage's steps between which the weight of L_eos rises.
RAMP_START, RAMP_END = 0.05, 0.25

MOST_BROKEN_STEPS = 10
"""So many steps in a row without a finite gradient end a run."""


def make_optimizer(parameters: Iterable[nn.Parameter], settings: Settings) -> torch.optim.AdamW:
    """AdamW with weight decay on matrices and convolutions only."""
    groups = make_groups(parameters, settings.weight_decay)
    return torch.optim.AdamW(groups, lr=settings.learning_rate, betas=(0.9, 0.95))


def make_groups(parameters: Iterable[nn.Parameter], weight_decay: float) -> list[dict[str, Any]]:
    """AdamW's groups: matrices and convolutions decay, biases and gains do not."""
    every = list(parameters)
    groups: list[dict[str, Any]] = [
        {"params": [p for p in every if p.dim() > 1], "weight_decay": weight_decay},
        {"params": [p for p in every if p.dim() <= 1], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def warm_cosine(step: int, total: int, warmup: int) -> float:
    """Share of the peak: linear warm-up over the first steps, then a cosine to 0 at the end (Table 8)."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 + 0.5 * math.cos(math.pi * (step - warmup) / max(1, total - warmup))


def learning_rate(settings: Settings, stage: Stage, step: int, total: int) -> float:
    """Linear warm-up over a stage's first steps, then a cosine to a twentieth at its end."""
    peak = stage.learning_rate or settings.learning_rate
    warm = min(1.0, (step + 1) / min(settings.warmup_steps, max(1, total // 4)))
    return peak * warm * (0.525 + 0.475 * math.cos(math.pi * step / total))


def eos_weight(settings: Settings, step: int, total: int) -> float:
    """lambda_eos: 0 at first, then rising linearly to its target (2.2)."""
    done = step / max(1, total)
    if done < RAMP_START:
        return 0.0
    return settings.lambda_eos * min(1.0, (done - RAMP_START) / (RAMP_END - RAMP_START))


def optimizer_state(path: nn.Module, optimizer: torch.optim.Optimizer, world: World) -> dict[str, Any]:
    """The optimiser's state on the CPU; every process must call it."""
    if not world.sharded:
        return optimizer.state_dict()
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_optimizer_state_dict

    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    return get_optimizer_state_dict(path, optimizer, options=options)


def load_optimizer(
    path: nn.Module, optimizer: torch.optim.Optimizer, state: dict[str, Any], world: World
) -> None:
    """Go on with `optimizer_state`'s result."""
    if not world.sharded:
        optimizer.load_state_dict(state)
        return
    from torch.distributed.checkpoint.state_dict import StateDictOptions, set_optimizer_state_dict

    set_optimizer_state_dict(path, optimizer, state, options=StateDictOptions(full_state_dict=True))
