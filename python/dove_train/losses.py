"""What is minimised, and the labels of the stop head."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def reconstruction_loss(reconstruction: Tensor, pixels: Tensor) -> Tensor:
    """L_mse of each sample (Eq. 2): [B], in units of the [-1, 1] range squared."""
    return (reconstruction.float() - pixels.float()).square().flatten(1).mean(1)


def sample_lengths(count: int, slots: int, full_share: float, generator: torch.Generator) -> Tensor:
    """A length for each sample: log-uniform in 1..slots, or `slots` for a share of them. int32 [count]."""
    uniform = torch.rand(count, generator=generator)
    lengths = (slots + 1) ** uniform
    full = torch.rand(count, generator=generator) < full_share
    return torch.where(full, torch.full_like(lengths, slots), lengths).int().clamp(1, slots)


def stop_loss(p_eos: Tensor, lengths: Tensor, loss: Tensor, threshold: float) -> Tensor:
    """Cross-entropy of the stop probability at the sampled length (the sampled-length rule).

    Stopping at position m (0-based) keeps m tokens, so the label of position `length` is whether the loss
    with `length` tokens is at most the threshold. It does not depend on the head's own decisions. At
    length K there is nothing left to stop.

    Args:
        p_eos: [B, K].
        lengths: int32 [B], the sampled ones.
        loss: [B], L_rec at these lengths; no gradient is taken through it.
        threshold: the loss that is good enough.
    """
    inside = lengths < p_eos.shape[1]
    position = lengths.clamp_max(p_eos.shape[1] - 1).long()[:, None]
    p = p_eos.gather(1, position)[:, 0].clamp(1e-6, 1 - 1e-6)
    label = (loss.detach() <= threshold).to(p.dtype)
    entropy = F.binary_cross_entropy(p, label, reduction="none")
    return (entropy * inside).sum() / inside.sum().clamp_min(1)


class RelativeLoss:
    """Running mean of L_rec by length, so that short and long lengths weigh the same.

    The error at 4 tokens is a hundred times that at 256; dividing each sample by what is usual at its
    length asks every length for the same relative gain. Lengths share a bin by powers of two.
    """

    def __init__(self, slots: int) -> None:
        self.mean = torch.zeros(slots.bit_length() + 1)

    def weight(self, loss: Tensor, lengths: Tensor) -> Tensor:
        """1 / (running mean at this length), [B]; updates the means with this batch."""
        bins = lengths.float().log2().long()
        for i, value in zip(bins.tolist(), loss.detach().tolist(), strict=True):
            self.mean[i] = value if self.mean[i] == 0 else 0.98 * self.mean[i] + 0.02 * value
        return 1 / self.mean[bins].clamp_min(1e-8)


class LengthTarget:
    """The threshold of the sampled-length rule, moved slowly so that the mean length meets a target."""

    def __init__(self, target: float, threshold: float, rate: float = 0.02) -> None:
        self.target, self.threshold, self.rate = target, threshold, rate

    def update(self, mean_length: float) -> None:
        """Raise the threshold when the model keeps too many tokens, lower it when too few."""
        error = max(-1.0, min(1.0, (mean_length - self.target) / self.target))
        self.threshold *= 1 + self.rate * error
