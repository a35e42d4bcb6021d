"""A caller's control of lengths, and lengths for a batch that must share a fixed number of tokens."""

from __future__ import annotations

import torch
from torch import Tensor


def lengths_for_budget(p_eos: Tensor, budget: int) -> Tensor:
    """Choose lengths that sum to exactly `budget`, giving tokens where the model is least ready to stop.

    Position i of an image is worth keeping as long as no position up to it wants to stop: its claim is the
    running maximum of p_eos, which never falls along an image. All positions of all images are sorted by
    claim, and the `budget` lowest are kept. Since claims never fall, what is kept of an image is a prefix,
    and all images are cut at one common stop probability: the same as the largest `eos_threshold` that
    the budget allows, with the remainder going to the positions that are next in line.

    Args:
        p_eos: [B, K], p_eos(i) of every position, float.
        budget: total tokens, between B (every image keeps at least one) and B * K.

    Returns:
        Tensor: int32 [B], each 1..K, summing to `budget`. Ties go to the lower position, then the
            lower image.

    Raises:
        ValueError: if the budget is out of range.
    """
    images, positions = p_eos.shape
    if not images <= budget <= images * positions:
        raise ValueError(f"the budget must be between {images} and {images * positions} tokens, got {budget}")
    # Token i + 1 is kept if the sequence does not stop at position i (0-based), so the first is kept always.
    claim = p_eos.cummax(dim=1).values
    claim[:, 0] = -1.0
    # Position-major order makes the stable sort break ties by position first.
    chosen = claim.T.flatten().argsort(stable=True)[:budget]
    return torch.bincount(chosen % images, minlength=images).int()


def require_length_controls(
    slots: int,
    num_tokens: int | None,
    max_tokens: int | None,
    eos_threshold: float | None,
    token_budget: int | None,
) -> None:
    """Refuse arguments of `DoveModel.encode` that contradict one another or are out of range.

    Args:
        slots: K of the model, the most tokens of an image.
        num_tokens: as for `encode`, like the others.
        max_tokens: see there.
        eos_threshold: see there.
        token_budget: see there; its range depends on the number of images and is not checked here.

    Raises:
        ValueError: which names the argument.
    """
    for name, value in (("num_tokens", num_tokens), ("max_tokens", max_tokens)):
        if value is not None and not (type(value) is int and 1 <= value <= slots):
            raise ValueError(f"{name} must be between 1 and {slots}, got {value!r}")
    if eos_threshold is not None and not 0 <= eos_threshold <= 1:
        raise ValueError(f"eos_threshold must be between 0 and 1, got {eos_threshold}")
    given = [n for n, v in (("max_tokens", max_tokens), ("eos_threshold", eos_threshold)) if v is not None]
    for name, value in (("num_tokens", num_tokens), ("token_budget", token_budget)):
        if value is not None and given:
            raise ValueError(f"{name} fixes the lengths; it cannot be combined with {' or '.join(given)}")
    if num_tokens is not None and token_budget is not None:
        raise ValueError("num_tokens and token_budget both fix the lengths; give one of them")
