"""The functions of the package itself: the default model, loaded once."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from dove_ext.config import DEFAULT_MODEL
from dove_ext.images import Fit, Images
from dove_ext.models.dove import DoveModel
from dove_ext.tokens import DoveTokens


@lru_cache(maxsize=1)
def _default() -> DoveModel:
    """The model of this module's functions; nobody else gets hold of it."""
    return DoveModel.from_pretrained(DEFAULT_MODEL)


def load_model(
    name_or_path: str = DEFAULT_MODEL,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
) -> DoveModel:
    """A pretrained model of your own, loaded anew by every call; see `DoveModel.from_pretrained`."""
    return DoveModel.from_pretrained(name_or_path, device=device, dtype=dtype)


def encode(
    images: Images,
    *,
    num_tokens: int | None = None,
    max_tokens: int | None = None,
    eos_threshold: float | None = None,
    token_budget: int | None = None,
    return_p_eos: bool = False,
    fit: Fit = "crop",
    batch_size: int = 32,
) -> DoveTokens:
    """Turn images into as many tokens as each deserves, with the default model (`DoveModel.encode`).

    The model is loaded at the first call, in float32 on the CPU; for another one, or another device or
    dtype, call `encode` of what `load_model` returns.

    Args:
        images: tensors, arrays, PIL images, paths, or a list of these (`prepare_images`).
        num_tokens: exactly this many tokens for every image, 1..256.
        max_tokens: stop here at the latest.
        eos_threshold: stop at the first position where p_eos >= this (0..1).
        token_budget: choose the lengths over all images so that they sum to exactly this.
        return_p_eos: keep the p_eos curve [B, 256] with the tokens.
        fit: how an image becomes square: "crop", "squash" or "pad".
        batch_size: images that run at once.

    Returns:
        DoveTokens: tokens [T, 256] float32 with cu_seqlens int32 [B + 1].

    Raises:
        ValueError: if length controls contradict one another or are out of range.
        ImageError: if an input is not an image or not in range.
    """
    return _default().encode(
        images,
        num_tokens=num_tokens,
        max_tokens=max_tokens,
        eos_threshold=eos_threshold,
        token_budget=token_budget,
        return_p_eos=return_p_eos,
        fit=fit,
        batch_size=batch_size,
    )


def decode(tokens: DoveTokens, *, batch_size: int = 32) -> Tensor:
    """Turn tokens of the default model back into images (`DoveModel.decode`).

    Args:
        tokens: from `encode`, possibly truncated, indexed or loaded.
        batch_size: images that run at once.

    Returns:
        Tensor: float32 [B, 3, 256, 256] in [0, 1].

    Raises:
        TokensError: if the tokens come from another model.
    """
    return _default().decode(tokens, batch_size=batch_size)


def reconstruct(
    images: Images,
    *,
    num_tokens: int | None = None,
    max_tokens: int | None = None,
    eos_threshold: float | None = None,
    token_budget: int | None = None,
    fit: Fit = "crop",
    batch_size: int = 32,
) -> tuple[Tensor, DoveTokens]:
    """`decode(encode(images, ...))` and the tokens, with the default model; arguments as for `encode`.

    Returns:
        (Tensor, DoveTokens): float32 [B, 3, 256, 256] in [0, 1], and the tokens.
    """
    tokens = encode(
        images,
        num_tokens=num_tokens,
        max_tokens=max_tokens,
        eos_threshold=eos_threshold,
        token_budget=token_budget,
        fit=fit,
        batch_size=batch_size,
    )
    return decode(tokens, batch_size=batch_size), tokens
