"""`encode` and `decode` where the activations have another dtype than the weights, or one without kernels."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import dove_ext
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
