"""Exponentially averaged weights, which are what a run evaluates and saves."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from dove_train.distributed import whole


class AveragedWeights:
    """A running mean of a model's weights, spread over processes as the model itself is."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self._whole = copy.deepcopy(model).eval()  # to be filled where a model is needed
        self.values: dict[str, Tensor] = {}
        self.reset(model)

    @torch.no_grad()
    def reset(self, model: nn.Module) -> None:
        """Start from the weights as they are."""
        self.values = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Move the mean towards the current weights, faster in a stage's first steps; buffers are copied."""
        decay = min(self.decay, (1 + step) / (10 + step))
        trained = {name for name, _ in model.named_parameters()}
        for name, tensor in model.state_dict().items():
            if name in trained:
                self.values[name].lerp_(tensor, 1 - decay)
            else:
                self.values[name].copy_(tensor)

    def state(self) -> dict[str, Tensor]:
        """All values, whole; every process must call it."""
        return {name: whole(tensor) for name, tensor in self.values.items()}

    @torch.no_grad()
    def restore(self, state: dict[str, Tensor], model: nn.Module) -> None:
        """Go on from `state`'s result, spread as the model now is."""
        self.values = {
            name: laid_out_like(state[name], tensor) for name, tensor in model.state_dict().items()
        }

    def model(self) -> Any:
        """A model with these weights, whole, in evaluation mode; every process must call it."""
        self._whole.load_state_dict(self.state())
        return self._whole


def laid_out_like(tensor: Tensor, other: Tensor) -> Tensor:
    """A copy of a whole tensor on the other's device, and sharded if the other is."""
    moved = tensor.detach().to(other.device, copy=True)
    layout: Any = other
    if not hasattr(layout, "device_mesh"):
        return moved
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(moved, layout.device_mesh, layout.placements)
