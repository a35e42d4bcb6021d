"""The losses against their equations, worked by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from dove_ext import ops
from dove_ext.models import precision
from dove_train.distributed import World
from dove_train.losses import (
    gaussian_loss,
    mean_squared_error,
    paper_eos_loss,
    quantiser_loss,
    reconstruction_loss,
    sampled_eos_loss,
)
from dove_train.objective import Objective
from dove_train.stages import NEAR, Outputs, TokensPass, around
from tests.models.micro import micro, photos
from tests.train.small import settings

ALONE = World(0, 1, torch.device("cpu"))


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
    p = torch.tensor([[0.1, 0.2, 0.3, 0.4]] * 7, requires_grad=True)
    stops = torch.tensor(
        [2, 2, 4, 1, 4, 0, 0], dtype=torch.int32
    )  # EOS at m = 3, 3, nowhere, 2, nowhere, 1, 1
    loss = torch.tensor([0.9, 0.1, 0.9, 0.1, 0.1, 0.9, 0.1])
    out = paper_eos_loss(p, stops, loss, threshold=0.5)
    # Eq. 3: p_eos(m); -1/(m-1) (p_eos(1) + p_eos(2)); the last position; -p_eos(1); all but the last; the
    # first position; nothing is before it
    assert torch.allclose(out, torch.tensor([0.3, -0.15, 0.4, -0.1, -0.2, 0.1, 0.0]))
    out.sum().backward()
    assert p.grad is not None
    assert p.grad[0].tolist() == [0, 0, 1, 0] and p.grad[1].tolist() == [-0.5, -0.5, 0, 0]


def test_paper_rule_learns_where_a_first_eos_fired() -> None:
    given = settings(eos_rule="paper")
    model = micro()
    with torch.no_grad():
        model.generator.embed_out.weight.zero_()
        model.generator.embed_out.bias.zero_()[model.config.eos_id] = 1.0  # EOS wins everywhere
    pixels = photos(2).float().div(127.5).sub(1)
    outputs = TokensPass(model)(pixels, None)
    assert outputs.lengths.tolist() == [1, 1]  # one token is kept all the same
    objective = Objective(given, ALONE)
    objective.threshold.update(0.0, 1.0)  # every loss is above it
    outputs.p_eos.retain_grad()
    total, _ = objective(outputs, pixels, lambda_eos=1.0, undecided=0, adversarial=False)
    total.backward()
    assert outputs.p_eos.grad.nonzero().tolist() == [[0, 0], [1, 0]]


def test_the_head_of_a_pass_takes_what_autocast_gives_a_matrix_product(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(precision, "_FASTER_LOWERED", ("cpu",))  # as on CUDA
    model, hidden = micro(), []
    model.generator.register_forward_hook(lambda _module, _inputs, output: hidden.append(output))
    with torch.autocast("cpu", torch.bfloat16):
        outputs = TokensPass(model)(photos(2).float().div(127.5).sub(1), None)
    head = model.generator.embed_out
    rounded = hidden[0].bfloat16(), head.weight.bfloat16(), head.bias
    assert outputs.p_eos.dtype == torch.float32
    assert torch.equal(outputs.p_eos, ops.eos_probability(*rounded, eos_id=model.config.eos_id))
    assert torch.equal(outputs.stops, ops.eos_scan(*rounded, eos_id=model.config.eos_id))


def test_the_relative_scale_leaves_the_adversarial_term_alone() -> None:
    given = settings(gan_weight=0.5, loss_scale="relative", batch_size=2)
    objective = Objective(given, ALONE)
    pixels = torch.zeros(2, 3, 64, 64)
    outputs = Outputs(torch.stack([torch.full((3, 64, 64), 0.1), torch.full((3, 64, 64), 0.7)]))
    gan = objective.adversary.generator_loss(outputs.reconstruction).mean()
    total, _ = objective(outputs, pixels, lambda_eos=0.0, undecided=0, adversarial=True)
    assert gan.abs() > 1e-3
    assert total.item() == pytest.approx(1 + 0.5 * gan.item(), rel=1e-5)


def test_sampled_rule_asks_whether_the_loss_is_small_enough() -> None:
    p = torch.full((3, 4), 0.5)
    p[0, 1], p[1, 2] = 0.9, 0.9
    lengths = torch.tensor([1, 2, 4], dtype=torch.int32)  # the last is K: nothing left to stop
    loss = torch.tensor([0.1, 0.3, 0.1])
    out = sampled_eos_loss(p, lengths, loss, threshold=0.2)
    assert torch.allclose(out, torch.tensor([-math.log(0.9), -math.log(0.1), 0.0]), atol=1e-5)


def test_no_cross_entropy_under_autocast(monkeypatch: pytest.MonkeyPatch) -> None:
    """CUDA's autocast raises on it, whatever the dtype; a CPU's does not."""
    real = F.binary_cross_entropy

    def as_on_a_gpu(p: torch.Tensor, *arguments: Any, **options: Any) -> torch.Tensor:
        assert not torch.is_autocast_enabled(p.device.type)
        return real(p, *arguments, **options)

    monkeypatch.setattr(F, "binary_cross_entropy", as_on_a_gpu)
    p, lengths, loss = torch.rand(3, 4), torch.tensor([1, 2, 4]), torch.tensor([0.1, 0.3, 0.2])
    expected = sampled_eos_loss(p, lengths, loss, threshold=0.2)
    with torch.autocast("cpu", torch.bfloat16):
        assert sampled_eos_loss(p, lengths, loss, threshold=0.2).equal(expected)


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


def test_odd_lengths_move_to_near_the_stop() -> None:
    stops = torch.tensor([30, 30, 30, 2, 64, 64], dtype=torch.int32)
    lengths = torch.tensor([4, 5, 64, 17, 9, 8], dtype=torch.int32)
    moved = around(stops, lengths, 64)
    assert moved.dtype == torch.int32
    assert moved.tolist() == [4, 30 + 5 - NEAR, 64, 1, 63, 8]  # a full length stays, the rest is 1..K - 1
    alone = [around(stops[i : i + 1], lengths[i : i + 1], 64).item() for i in range(6)]
    assert alone == moved.tolist()  # an image's place in the run decides, not its batch
    odd = torch.arange(1, 64, 2)
    spread = around(torch.full((len(odd),), 30), odd, 64) - 30
    assert spread.min() >= -NEAR and spread.max() <= NEAR and spread.unique().numel() > NEAR


def test_a_promise_is_judged_by_psnr_alone() -> None:
    """Whatever L_rec holds besides: the label of a stop is whether the picture has the promised PSNR."""
    pixels = torch.zeros(2, 3, 64, 64)
    error = torch.tensor([31.9, 32.1])  # dB
    pictures = (2 * 10 ** (-error / 20))[:, None, None, None].expand(-1, 3, 64, 64)
    p_eos = torch.full((2, 4), 0.9)
    lengths, stops = torch.tensor([2, 2], dtype=torch.int32), torch.tensor([1, 1], dtype=torch.int32)
    outputs = Outputs(pictures, lengths, stops, p_eos)
    objective = Objective(settings(mse_weight=100.0), ALONE, promised_psnr=32.0)
    _, tally = objective(outputs, pixels, lambda_eos=1.0, undecided=2, adversarial=False)
    assert tally["eos"].item() == pytest.approx(-math.log(0.1) - math.log(0.9), rel=1e-4)
    before = objective.threshold.value(1.0)
    objective.update({"loss": 9.0, "length": 4.0}, lambda_eos=1.0)
    assert objective.threshold.value(1.0) == before == pytest.approx(4 * 10**-3.2)
