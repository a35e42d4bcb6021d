"""Reading the peers' public weights: tensors only, and every name must fit."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from dove_ext.checkpoints.read import read_foreign
from dove_ext.errors import CheckpointError


def read(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file or PyTorch checkpoint, nested names joined by ".".

    Pickles are read by `torch.load(weights_only=True)`. ALIT's training leaves its arguments in the file;
    their class holds values only, and is allowed.

    Raises:
        CheckpointError: if the file cannot be read or asks for more than tensors and plain containers.
    """
    with torch.serialization.safe_globals([argparse.Namespace]):
        return read_foreign(path).tensors


def fit(model: nn.Module, weights: Mapping[str, Tensor], path: str | Path) -> None:
    """Put weights, as float32, into a model (which may be on the meta device); it ends in eval mode.

    Raises:
        CheckpointError: naming what is missing, what is unexpected and what has another shape.
    """
    expected = model.state_dict()
    other = [n for n in expected if n in weights and weights[n].shape != expected[n].shape]
    faults = {
        "it lacks": [name for name in expected if name not in weights],
        "the model has no place for its": [name for name in weights if name not in expected],
        "the model has other shapes for its": other,
    }
    told = ", ".join(f"{fault} {_names(names)}" for fault, names in faults.items() if names)
    if told:
        raise CheckpointError(
            f"{path} does not fit {type(model).__name__}: {told}; give the file of this model and size"
        )
    model.load_state_dict({name: weights[name].float() for name in expected}, assign=True)
    model.eval()


def _names(names: list[str]) -> str:
    shown = ", ".join(repr(name) for name in names[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"
