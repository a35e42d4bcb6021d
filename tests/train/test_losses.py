"""The losses against their equations, worked by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from dove_train.losses import (
    gaussian_loss,
    mean_squared_error,
    paper_eos_loss,
    quantiser_loss,
    reconstruction_loss,
    sampled_eos_loss,
)


def test_mean_squared_error_is_per_image() -> None:
    a, b = torch.zeros(2, 3, 4, 4), torch.zeros(2, 3, 4, 4)
    b[1] = 0.5
    assert mean_squared_error(a, b).tolist() == [0.0, 0.25]


def test_reconstruction_loss_weighs_its_terms() -> None:
    class Distance(nn.Module):
        def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
            return (a - b).abs().flatten(1).mean(1)

    a, b = torch.zeros(1, 3, 4, 4), torch.full((1, 3, 4, 4), 0.5)
    loss = reconstruction_loss(a, b, mse_weight=2.0, perceptual=Distance(), perceptual_weight=0.1)
    assert loss.item() == pytest.approx(2 * 0.25 + 0.1 * 0.5)
    assert reconstruction_loss(a, b).item() == pytest.approx(0.25)


def test_paper_rule_above_and_below_the_threshold() -> None:
    p = torch.tensor([[0.1, 0.2, 0.3, 0.4]] * 4, requires_grad=True)
    kept = torch.tensor([2, 2, 4, 1], dtype=torch.int32)  # EOS at m = 3, 3, nowhere, 2
    loss = torch.tensor([0.9, 0.1, 0.9, 0.1])
    out = paper_eos_loss(p, kept, loss, threshold=0.5)
    # Eq. 3: p_eos(m); -1/(m-1) (p_eos(1) + p_eos(2)); the last position; -p_eos(1)
    assert torch.allclose(out, torch.tensor([0.3, -0.15, 0.4, -0.1]))
    out.sum().backward()
    assert p.grad is not None
    assert p.grad[0].tolist() == [0, 0, 1, 0] and p.grad[1].tolist() == [-0.5, -0.5, 0, 0]


def test_sampled_rule_asks_whether_the_loss_is_small_enough() -> None:
    p = torch.full((3, 4), 0.5)
    p[0, 1], p[1, 2] = 0.9, 0.9
    lengths = torch.tensor([1, 2, 4], dtype=torch.int32)  # the last is K: nothing left to stop
    loss = torch.tensor([0.1, 0.3, 0.1])
    out = sampled_eos_loss(p, lengths, loss, threshold=0.2)
    assert torch.allclose(out, torch.tensor([-math.log(0.9), -math.log(0.1), 0.0]), atol=1e-5)


def test_gaussian_loss_counts_kept_tokens_only() -> None:
    divergence = torch.tensor([[1.0, 2.0, 100.0], [4.0, 100.0, 100.0]])
    assert gaussian_loss(divergence, torch.tensor([2, 1])).tolist() == [1.5, 4.0]


def test_quantiser_loss_pulls_both_ways() -> None:
    z = torch.zeros(1, 2, 3, requires_grad=True)
    e = torch.ones(1, 2, 3, requires_grad=True)
    loss = quantiser_loss(z, e, commitment=0.25)
    assert loss.item() == pytest.approx(1.25)
    loss.sum().backward()
    assert z.grad is not None and e.grad is not None
    assert torch.allclose(z.grad, torch.full_like(z, -2 * 0.25 / 6))
    assert torch.allclose(e.grad, torch.full_like(e, 2 / 6))
