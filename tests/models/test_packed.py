"""Layers on packed weights compute what the plain ones do, and follow their weights."""

from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from dove_ext.models import packed
from dove_ext.models.packed import Linear


@pytest.fixture
def packs(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """The weights that were packed so far."""
    seen: list[Tensor] = []
    original = packed.pack_linear

    def counting(weight: Tensor) -> Tensor:
        seen.append(weight)
        return original(weight)

    monkeypatch.setattr(packed, "pack_linear", counting)
    return seen


@pytest.mark.parametrize("gelu", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_equals_the_plain_layer(dtype: torch.dtype, gelu: bool) -> None:
    layer, x = Linear(48, 96).to(dtype), torch.randn(2, 31, 48).to(dtype)
    exact = F.linear(x.double(), layer.weight.double(), layer.bias.double())
    exact = F.gelu(exact) if gelu else exact
    plain = F.linear(x, layer.weight, layer.bias)
    plain = F.gelu(plain) if gelu else plain
    error = (layer(x, gelu=gelu).double() - exact).abs().max()
    assert layer(x, gelu=gelu).dtype == dtype
    assert error <= 2 * (plain.double() - exact).abs().max() + 1e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("images", [1, 2])
@torch.no_grad()
def test_sum_equals_the_plain_one(dtype: torch.dtype, images: int) -> None:
    layer, x = Linear(48, 96).to(dtype), torch.randn(images, 31, 48).to(dtype)
    other = torch.randn(2, 31, 96).to(dtype)
    kept = other.clone()
    exact = other.double() + F.linear(x.double(), layer.weight.double(), layer.bias.double())
    plain = other + F.linear(x, layer.weight, layer.bias)
    error = (layer.add_to(other, x).double() - exact).abs().max()
    assert error <= 2 * (plain.double() - exact).abs().max() + 1e-6
    assert torch.equal(other, kept)


def test_weights_are_packed_once_and_only_without_gradient(packs: list[Tensor]) -> None:
    layer, x = Linear(32, 32), torch.randn(3, 32)
    layer(x).sum().backward()
    assert layer.weight.grad is not None
    assert not packs
    with torch.no_grad():
        layer(x)
        layer(x[:1])
    assert len(packs) == 1


@pytest.mark.parametrize(
    "change",
    [
        lambda layer: layer.weight.mul_(2),
        lambda layer: layer.weight.data.copy_(layer.weight.data * 2),
        lambda layer: layer.load_state_dict({n: t * 2 for n, t in layer.state_dict().items()}),
    ],
    ids=["in_place", "behind_the_version_counter", "loaded"],
)
@torch.no_grad()
def test_changed_weights_are_packed_anew(change: Callable[[Linear], object]) -> None:
    layer, x = Linear(32, 32), torch.randn(3, 32)
    layer.bias.zero_()
    before = layer(x)
    change(layer)
    torch.testing.assert_close(layer(x), 2 * before)


@pytest.mark.parametrize("index", [(slice(None), 5), 7, (slice(None), slice(1, None))], ids=str)
@torch.no_grad()
def test_a_changed_row_or_column_is_seen(index: Any) -> None:
    layer, x = Linear(96, 48), torch.randn(3, 96)
    layer(x)
    layer.weight.data[index] = 0
    torch.testing.assert_close(layer(x), F.linear(x, layer.weight, layer.bias))


@pytest.mark.parametrize("shape", [(864, 256), (256, 864), (1, 7), (7, 1), (6, 12), (192, 64, 3, 3)], ids=str)
def test_sample_holds_a_value_of_every_row_and_column(shape: tuple[int, ...]) -> None:
    places = torch.arange(math.prod(shape)).view(shape)
    sample, columns = packed.sample_of(places), math.prod(shape[1:])
    assert (sample // columns).unique().tolist() == list(range(shape[0]))
    assert (sample % columns).unique().tolist() == list(range(columns))
    assert len(sample) < 2 * max(shape[0], columns)


@torch.no_grad()
def test_copies_and_pickles_hold_no_packed_weights() -> None:
    layer, x = Linear(32, 32), torch.randn(3, 32)
    before = layer(x)
    assert layer._packed._made is not None
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert other._packed._made is None
        assert torch.equal(other(x), before)


@torch.no_grad()
def test_without_the_operator_it_is_the_plain_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed, "_has_packed_linear", lambda dtype: False)
    layer, x = Linear(32, 64), torch.randn(3, 32)
    assert torch.equal(layer(x, gelu=True), F.gelu(F.linear(x, layer.weight, layer.bias)))
