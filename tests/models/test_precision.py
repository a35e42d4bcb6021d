"""`encode` and `decode` where the activations have another dtype than the weights, or one without kernels."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import dove_ext
from tests.models.micro import micro, photos, stop_at_share

pytestmark = pytest.mark.usefixtures("one_thread")

CONTROLS: list[dict[str, Any]] = [
    {},
    {"return_p_eos": True},
    {"eos_threshold": 0.3},
    {"num_tokens": 5},
    {"token_budget": 40},
]


@pytest.mark.parametrize("controls", CONTROLS, ids=str)
def test_under_autocast(controls: dict[str, Any]) -> None:
    model = stop_at_share(micro())
    expected = model.encode(photos(4), **controls)
    with torch.autocast("cpu", torch.bfloat16):
        tokens = model.encode(photos(4), **controls)
        images = model.decode(tokens)
    assert tokens.dtype == torch.bfloat16 and images.dtype == torch.float32
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
