"""Our stack against transformers' GPTNeoXModel with the same weights."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

import dove_ext
from dove_ext.config import StackConfig
from dove_ext.models.stack import KeyValueCache, Stack

transformers = pytest.importorskip("transformers", reason="the parity test needs transformers")


@pytest.fixture(params=["auto", "torch"])
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    previous = dove_ext.set_backend(request.param)
    yield request.param
    dove_ext.set_backend(previous)


def neox(config: StackConfig) -> Any:
    torch.manual_seed(1)
    shape = transformers.GPTNeoXConfig(
        vocab_size=32,
        hidden_size=config.hidden,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        intermediate_size=config.mlp,
        hidden_act="gelu",
        max_position_embeddings=2048,
        rope_parameters={
            "rope_type": "default",
            "rope_theta": config.rotary_base,
            "partial_rotary_factor": config.rotary_fraction,
        },
        rotary_pct=config.rotary_fraction,
        layer_norm_eps=config.layer_norm_eps,
        use_parallel_residual=True,
        attention_bias=True,
        attn_implementation="eager",
    )
    model = transformers.GPTNeoXModel(shape).eval()
    for name, parameter in model.named_parameters():
        # Larger than at a real model's start, so that attention is far from uniform.
        torch.nn.init.normal_(parameter, 1.0 if name.endswith("norm.weight") else 0.0, 0.06)
    return model


def ours_of(model: Any, config: StackConfig) -> Stack:
    stack = Stack(config).eval()
    state = {n: t for n, t in model.state_dict().items() if not n.startswith(("embed_in", "rotary_emb"))}
    stack.load_state_dict(state)  # strict: the names are Pythia's
    return stack


@pytest.mark.parametrize(
    ("backend", "layers", "positions"),
    [
        ("auto", 2, 1),
        ("auto", 2, 31),
        ("auto", 2, 257),
        ("auto", 6, 512),
        ("torch", 2, 31),
        ("torch", 6, 257),
    ],
    indirect=["backend"],
)
@torch.no_grad()
def test_equals_gpt_neox(backend: str, layers: int, positions: int) -> None:
    config = StackConfig(layers=layers)
    theirs = neox(config)
    ours = ours_of(theirs, config)
    assert sum(p.numel() for p in ours.parameters()) == sum(
        p.numel() for n, p in theirs.named_parameters() if not n.startswith("embed_in")
    )
    x = torch.randn(1, positions, config.hidden)
    result = ours(x, prefix=0)
    expected = theirs(inputs_embeds=x, use_cache=False).last_hidden_state
    assert expected.std() > 0.3  # the comparison is of something
    exact = theirs.double()(inputs_embeds=x.double(), use_cache=False).last_hidden_state
    assert not torch.isnan(result).any()
    error = (result.double() - exact).abs().max().item()
    theirs_error = (expected.double() - exact).abs().max().item()
    assert error <= 2 * theirs_error + 2e-6, f"ours {error:.2e}, transformers {theirs_error:.2e}"


@torch.no_grad()
def test_cache_equals_single_pass(backend: str) -> None:
    config = StackConfig(hidden=64, layers=3, heads=2, mlp=128)
    stack = ours_of(neox(config), config)
    x = torch.randn(2, 50, 64)
    whole = stack(x, prefix=0)
    cache = KeyValueCache(config, 2, 50, x)
    parts = [stack(x[:, :21], prefix=0, cache=cache, last=1)]
    parts += [stack(x[:, a:b], prefix=0, cache=cache) for a, b in ((21, 34), (34, 50))]
    torch.testing.assert_close(torch.cat(parts, dim=1), whole[:, 20:], rtol=0, atol=1e-5)


@torch.no_grad()
def test_images_expanded_from_one(backend: str) -> None:
    config = StackConfig(hidden=64, layers=2, heads=2, mlp=128)
    stack, x = ours_of(neox(config), config), torch.randn(1, 20, 64)
    torch.testing.assert_close(stack(x.expand(3, -1, -1), prefix=0), stack(x, prefix=0).expand(3, -1, -1))


@torch.no_grad()
def test_prefix_and_full_attention(backend: str) -> None:
    """Who sees whom: a change at a position reaches exactly the positions that may see it."""
    config = StackConfig(hidden=64, layers=1, heads=2, mlp=128)
    stack = ours_of(neox(config), config)
    x = torch.randn(1, 12, 64)
    for prefix in (0, 5, None):
        before = stack(x, prefix=prefix)
        for k in (0, 4, 5, 9):
            changed = x.clone()
            changed[:, k] = torch.randn(64)  # not a constant added, which LayerNorm would take out
            moved = (stack(changed, prefix=prefix) - before).abs().amax(-1)[0] > 1e-7
            assert moved.tolist() == [prefix is None or k <= q or k < prefix for q in range(12)]
