"""The functions of the package itself: the default model, loaded once."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from dove_ext.models.dove import DoveModel
from dove_ext.tokens import DoveTokens

DEFAULT_MODEL = "dove-tiny"


@lru_cache(maxsize=1)
def load_model(
    name_or_path: str = DEFAULT_MODEL, *, device: str = "cpu", dtype: torch.dtype = torch.float32
) -> DoveModel:
    """A pretrained model, loaded once and kept until another is asked for.

    See `DoveModel.from_pretrained`.
    """
    return DoveModel.from_pretrained(name_or_path, device=device, dtype=dtype)


def encode(images: Any, **options: Any) -> DoveTokens:
    """`DoveModel.encode` of the default model, which is loaded at the first call."""
    return load_model().encode(images, **options)


def decode(tokens: DoveTokens) -> Tensor:
    """`DoveModel.decode` of the default model: float32 [B, 3, 256, 256] in [0, 1]."""
    return load_model().decode(tokens)


def reconstruct(images: Any, **options: Any) -> tuple[Tensor, DoveTokens]:
    """`DoveModel.reconstruct` of the default model: images [B, 3, 256, 256] in [0, 1] and their tokens."""
    return load_model().reconstruct(images, **options)
