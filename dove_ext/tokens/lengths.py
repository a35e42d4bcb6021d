"""A caller's control of lengths, and lengths for a batch that must share a fixed number of tokens."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from dove_ext.metrics.pixel import PSNR_CEILING
from dove_ext.tokens.indexing import is_int, plain_int


@dataclass(frozen=True)
class LengthRule:
    """How a caller wants the lengths of an `encode` to be chosen; without any field the model decides.

    Attributes:
        num_tokens: exactly this many tokens for every image, 1..K.
        min_tokens: stop here at the earliest, 1..K. An image that the model ends before this has exactly so
            many: that a prefix is good enough does not become untrue by more tokens, whatever p_eos is there.
        max_tokens: stop here at the latest, 1..K.
        eos_threshold: stop at the first position where p_eos >= this (0..1), instead of where EOS wins the
            vocabulary's arg-max.
        token_budget: lengths over all images of the call that sum to exactly this (`lengths_for_budget`);
            `min_tokens` of it are each image's.
        target_psnr: the fewest tokens whose reconstruction by the model itself is this close to the image, in
            dB; `min_tokens` and `max_tokens` win.
    """

    num_tokens: int | None = None
    min_tokens: int | None = None
    max_tokens: int | None = None
    eos_threshold: float | None = None
    token_budget: int | None = None
    target_psnr: float | None = None

    def __post_init__(self) -> None:
        for name in ("num_tokens", "min_tokens", "max_tokens", "token_budget"):
            object.__setattr__(self, name, plain_int(getattr(self, name)))

    def conflict(self) -> tuple[str, list[str]] | None:
        """A field that decides the lengths, and those given beside it that it leaves nothing to, or None."""
        given = [field.name for field in fields(self) if getattr(self, field.name) is not None]
        for name, leaves in (
            ("num_tokens", ()),
            ("token_budget", ("min_tokens",)),
            ("eos_threshold", ("min_tokens", "max_tokens")),
        ):
            others = [other for other in given if other != name and other not in leaves]
            if name in given and others:
                return name, others
        return None

    @property
    def crossed(self) -> bool:
        """Whether `min_tokens` is above `max_tokens`."""
        return self.max_tokens is not None and self.least > self.max_tokens

    def check(self, slots: int, images: int) -> None:
        """Refuse fields that contradict one another or are out of range.

        Args:
            slots: K of the model, the most tokens of an image.
            images: images of the call, which bound a budget.

        Raises:
            ValueError: which names the field.
        """
        if (conflict := self.conflict()) is not None:
            name, others = conflict
            raise ValueError(f"{name} decides the lengths; it cannot be combined with {' or '.join(others)}")
        for name in ("num_tokens", "min_tokens", "max_tokens"):
            value = getattr(self, name)
            if value is not None and not (is_int(value) and 1 <= value <= slots):
                raise ValueError(f"{name} must be between 1 and {slots}, got {value!r}")
        threshold, target, budget = self.eos_threshold, self.target_psnr, self.token_budget
        if threshold is not None and not 0 <= threshold <= 1:
            raise ValueError(f"eos_threshold must be between 0 and 1, got {threshold}")
        if target is not None and not 0 < target <= PSNR_CEILING:
            raise ValueError(f"target_psnr must be above 0 and at most {PSNR_CEILING:g} dB, got {target}")
        least = self.least
        if self.crossed:
            raise ValueError(f"min_tokens must be at most max_tokens, {self.max_tokens}, got {least}")
        if budget is None:
            return
        if not is_int(budget):
            raise ValueError(f"token_budget must be a whole number, got {budget!r}")
        if not images * least <= budget <= images * slots:
            raise ValueError(
                f"token_budget must be between {least} and {slots} tokens an image "
                f"({images * least}..{images * slots} for {images} images), got {budget}"
            )

    @property
    def least(self) -> int:
        """The fewest tokens that an image gets where the model, a budget or a quality decides."""
        return self.min_tokens or 1

    def most(self, slots: int) -> int:
        """The most tokens that an image of a model with K = `slots` can get under this rule."""
        return self.num_tokens or self.max_tokens or slots


def lengths_for_budget(log_odds: Tensor, budget: int, least: int = 1) -> Tensor:
    """Choose lengths that sum to exactly `budget`, giving tokens where the model is least ready to stop.

    Position i of an image is worth keeping as long as no position up to it wants to stop: its claim is the
    running maximum of p_eos, which never falls along an image. All positions of all images are sorted by
    claim, and the `budget` lowest are kept. Since claims never fall, what is kept of an image is a prefix,
    and all images are cut at one common stop probability: the same as the largest `eos_threshold` that
    the budget allows, with the remainder going to the positions that are next in line. Claims are compared
    as log-odds: a budget above what the model itself would keep is decided where p_eos rounds to 1.

    Args:
        log_odds: [B, K], log(p_eos / (1 - p_eos)) of every position, float (`ops.eos_log_odds`); only their
            order counts.
        budget: total tokens, between B * `least` and B * K.
        least: tokens that every image keeps, 1..K.

    Returns:
        Tensor: int32 [B], each `least`..K, summing to `budget`. Ties go to the lower position, then the
            lower image.

    Raises:
        ValueError: if the budget is out of range.
    """
    images, positions = log_odds.shape
    if not images * least <= budget <= images * positions:
        raise ValueError(
            f"the budget must be between {images * least} and {images * positions} tokens, got {budget}"
        )
    # Token i + 1 is kept if the sequence does not stop at position i (0-based), so the first is kept always.
    claim = log_odds.cummax(dim=1).values
    claim[:, :least] = -torch.inf
    # Position-major order makes the stable sort break ties by position first.
    chosen = claim.T.flatten().argsort(stable=True)[:budget]
    kept = torch.ones_like(chosen, dtype=torch.int32)  # summed like this, and nobody waits for a GPU
    return kept.new_zeros(images).scatter_add_(0, chosen % images, kept)


def lengths_within(log_odds: Tensor, most: Tensor, budget: int, least: int = 1) -> Tensor:
    """Lengths that sum to at most `budget`, given as by `lengths_for_budget`, none above a bound of its own.

    Args:
        log_odds: as for `lengths_for_budget`.
        most: int32 [B], `least`..K, the most tokens of each image.
        budget: total tokens, at least B * `least`.
        least: tokens that every image keeps, 1..K.

    Returns:
        Tensor: int32 [B], each `least`..`most`, summing to `budget`, or to the sum of `most` if that is less.
    """
    behind = torch.arange(log_odds.shape[1], device=log_odds.device) >= most[:, None]
    return lengths_for_budget(log_odds.masked_fill(behind, torch.inf), min(budget, int(most.sum())), least)
