"""`encode` and `decode` where the activations have another dtype than the weights, or one without kernels."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import dove_ext
from dove_ext import ops
from dove_ext.models import precision
from dove_ext.models.generator import Generator
from dove_ext.ops import reference
from tests.models.micro import SLOTS, micro, photos, stop_at_share

pytestmark = pytest.mark.usefixtures("one_thread")

CONTROLS: list[dict[str, Any]] = [
    {},
    {"return_p_eos": True},
    {"eos_threshold": 0.3},
    {"num_tokens": 5},
    {"token_budget": 40},
]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("controls", CONTROLS, ids=str)
def test_under_autocast(controls: dict[str, Any], dtype: torch.dtype) -> None:
    model = stop_at_share(micro())
    expected = model.encode(photos(4), **controls)
    with torch.autocast("cpu", dtype):
        tokens = model.encode(photos(4), **controls)
        images = model.decode(tokens)
    assert tokens.dtype == dtype and images.dtype == torch.float32
    assert images.isfinite().all()
    if "num_tokens" in controls or "token_budget" in controls:  # others hang on the rounding of p_eos
        assert tokens.lengths.sum() == expected.lengths.sum()
    if tokens.p_eos is not None and expected.p_eos is not None:
        assert (tokens.p_eos - expected.p_eos).abs().mean() < 0.05


@pytest.mark.parametrize("controls", CONTROLS, ids=str)
def test_in_float64(controls: dict[str, Any]) -> None:
    model = stop_at_share(micro())
    expected = model.encode(photos(4), **controls)
    previous = dove_ext.set_backend("torch")
    try:
        tokens = model.double().encode(photos(4), **controls)
    finally:
        dove_ext.set_backend(previous)
    assert tokens.dtype == torch.float64
    assert tokens.lengths.tolist() == expected.lengths.tolist()
    if tokens.p_eos is not None and expected.p_eos is not None:
        torch.testing.assert_close(tokens.p_eos, expected.p_eos, rtol=0, atol=1e-3)


def test_float16_autocast_errs_by_its_rounding() -> None:
    """There are no CPU kernels of float16: plain PyTorch computes what autocast lowers to it."""
    model = micro()
    expected = model.encode(photos(3), num_tokens=SLOTS)
    with torch.autocast("cpu", torch.float16):
        tokens = model.encode(photos(3), num_tokens=SLOTS)
        images = model.decode(tokens)
    assert torch.cosine_similarity(tokens.tokens.float(), expected.tokens, dim=1).min() > 0.9995
    assert (images - model.decode(expected)).abs().mean() < 0.004  # a third of what bfloat16 errs by


def test_training_under_float16_autocast() -> None:
    model, pixels = micro().train(), photos(3).float() / 127.5 - 1
    lengths = torch.tensor([9, 30, SLOTS], dtype=torch.int32)

    def gradients(autocast: bool) -> dict[str, torch.Tensor]:
        model.zero_grad()
        with torch.autocast("cpu", torch.float16, enabled=autocast):
            reconstruction, _ = model(pixels, lengths)
        (reconstruction.float() - pixels).square().mean().backward()
        return {n: p.grad.clone().flatten() for n, p in model.named_parameters() if p.grad is not None}

    exact, lowered = gradients(False), gradients(True)
    assert exact.keys() == lowered.keys()
    for name, gradient in exact.items():
        if gradient.norm() > 1e-6:
            assert torch.cosine_similarity(lowered[name], gradient, dim=0) > 0.998, name


@pytest.fixture(scope="module")
def head() -> tuple[Generator, Tensor]:
    """A generator with a head of 700 words, and hidden states at which EOS wins here and there."""
    generator, random = micro(vocab_size=700).generator, torch.Generator().manual_seed(5)
    hidden = torch.randn(3, 40, 64, generator=random)
    with torch.no_grad():
        generator.embed_out.weight.copy_(torch.randn(700, 64, generator=random) * 0.3)
        assert generator.embed_out.bias is not None
        generator.embed_out.bias.zero_()[generator.config.eos_id] = 2.0
        hidden[0, 9] = hidden[2, 17] = 6 * generator.embed_out.weight[generator.config.eos_id]
    return generator, hidden


@pytest.fixture
def lowered(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on CUDA."""
    monkeypatch.setattr(precision, "_FASTER_LOWERED", ("cpu",))


@pytest.mark.usefixtures("lowered")
def test_the_head_under_autocast_takes_what_a_matrix_product_takes(head: tuple[Generator, Tensor]) -> None:
    generator, hidden = head
    with torch.autocast("cpu", torch.bfloat16):
        p_eos, stops = generator.p_eos(hidden), generator.first_stop(hidden)
    weight, bias, eos_id = generator.embed_out.weight, generator.embed_out.bias, generator.config.eos_id
    rounded = hidden.bfloat16(), weight.bfloat16(), bias
    assert torch.equal(p_eos, ops.eos_probability(*rounded, eos_id=eos_id))
    assert stops.tolist() == ops.eos_scan(*rounded, eos_id=eos_id).tolist() == [9, 40, 17]
    # What the docstring of p_eos promises, and sums of the rounded operands in float32.
    exact = reference.eos_probability(hidden.double(), weight.double(), bias.double(), eos_id=eos_id)
    largest = (hidden.double().abs() @ weight.double().abs().T).amax(-1) / 256
    assert ((p_eos / exact).log().abs() <= 2 * largest).all()
    sums = reference.eos_probability(rounded[0].double(), rounded[1].double(), bias.double(), eos_id=eos_id)
    torch.testing.assert_close(p_eos.double(), sums, rtol=1e-5, atol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_head_on_a_cpu_ignores_autocast(head: tuple[Generator, Tensor], dtype: torch.dtype) -> None:
    generator, hidden = head
    with torch.autocast("cpu", dtype):
        p_eos, stops = generator.p_eos(hidden), generator.first_stop(hidden)
    assert torch.equal(p_eos, generator.p_eos(hidden))
    assert torch.equal(stops, generator.first_stop(hidden))


@pytest.mark.usefixtures("lowered")
def test_plain_pytorch_sums_logits_in_float32_under_autocast(
    head: tuple[Generator, Tensor],
) -> None:
    generator, hidden = head
    with torch.autocast("cpu", torch.bfloat16):
        expected = generator.p_eos(hidden)
        previous = dove_ext.set_backend("torch")
        try:
            plain = generator.p_eos(hidden)
        finally:
            dove_ext.set_backend(previous)
    torch.testing.assert_close(plain, expected, rtol=1e-5, atol=0)


@pytest.mark.usefixtures("lowered")
@pytest.mark.parametrize("inside", [False, True])
def test_gradients_of_the_head_under_autocast(head: tuple[Generator, Tensor], inside: bool) -> None:
    generator, hidden = head
    parameters = generator.embed_out.weight, generator.embed_out.bias
    weights = torch.linspace(-1, 1, hidden[..., 0].numel(), dtype=torch.float64).view(hidden.shape[:2])

    leaf = hidden.clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        loss = (generator.p_eos(leaf) * weights).sum()
        if inside:
            actual = torch.autograd.grad(loss, (leaf, *parameters))
    if not inside:
        actual = torch.autograd.grad(loss, (leaf, *parameters))

    rounded = hidden.bfloat16(), parameters[0].bfloat16(), parameters[1]
    wide = [t.detach().double().requires_grad_() for t in rounded]
    p_eos = reference.eos_probability(*wide, eos_id=generator.config.eos_id)
    for low, exact in zip(actual, torch.autograd.grad((p_eos * weights).sum(), wide), strict=True):
        assert low.dtype == torch.float32
        assert (low - exact).norm() < 2**-8 * exact.norm()  # they are rounded once
