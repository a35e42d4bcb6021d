"""The differentiable path: gradients, dtypes, compilation."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import dove_ext
from dove_ext.models.dove import DoveModel
from tests.models.micro import MICRO, SLOTS, STACK, micro, photos, pixels, stop_at_share

pytestmark = pytest.mark.usefixtures("one_thread")


def dead(model: DoveModel) -> set[str]:
    """Parameters without a gradient, or with one that is zero everywhere."""
    return {n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()}


VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "shortcut": {"shortcut": True},
    "gaussian": {"gaussian": True},
    "bidirectional": {"prefix_attention": "bidirectional"},
    "no padding": {"attend_padding": False},
}
# The codebook serves the VQGAN baseline alone.
BASELINE = {"vqgan.quantize.embedding.weight"}
HEAD = {"generator.embed_out.weight", "generator.embed_out.bias"}


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_parameter_learns(variant: str) -> None:
    model = micro(**VARIANTS[variant]).train()
    image = pixels(2)
    lengths = torch.tensor([SLOTS, 20], dtype=torch.int32)
    tokens, hidden, _ = model.generate(model.condition(image))
    (model.render(tokens, lengths) - image).pow(2).mean().backward(retain_graph=True)
    # The reconstruction alone teaches all but the head; of a linear code, all but what decides where it ends.
    generator = {f"generator.{name}" for name, _ in model.generator.named_parameters()}
    assert dead(model) == BASELINE | (generator if model.config.shortcut else HEAD)
    model.generator.p_eos(hidden).log().sum().backward()
    assert dead(model) == BASELINE


def test_reconstruction_does_not_reach_the_head() -> None:
    """Kept tokens learn from the reconstruction, the head from p_eos alone: lengths pass no gradient."""
    model = stop_at_share(micro())
    image = pixels(4)
    reconstruction, lengths = model(image)
    assert lengths.dtype == torch.int32 and not lengths.requires_grad
    assert len(lengths.unique()) > 1
    reconstruction.sum().backward()
    assert dead(model) >= HEAD


def test_no_gradient_behind_the_end() -> None:
    model = micro()
    tokens = torch.randn(2, SLOTS, 64, requires_grad=True)
    model.render(tokens, torch.tensor([5, SLOTS], dtype=torch.int32)).pow(2).sum().backward()
    assert tokens.grad is not None
    assert not tokens.grad[0, 5:].any()
    assert tokens.grad[0, :5].any(-1).all() and tokens.grad[1].any(-1).all()


def test_gradients_equal_plain_pytorch() -> None:
    gradients = []
    lengths = torch.tensor([30, 7], dtype=torch.int32)
    for backend in ("auto", "torch"):
        previous = dove_ext.set_backend(backend)
        try:
            model = micro()
            reconstruction, _ = model(pixels(2), lengths)
            (reconstruction - pixels(2)).pow(2).mean().backward()
        finally:
            dove_ext.set_backend(previous)
        gradients.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, plain in gradients[1].items():
        atol = 2e-3 * plain.abs().max().item() + 1e-8
        torch.testing.assert_close(gradients[0][name], plain, rtol=0, atol=atol, msg=name)


def test_forward_stops_where_encode_does() -> None:
    model = stop_at_share(micro())
    with torch.no_grad():
        reconstruction, lengths = model(pixels(4))
    tokens = model.encode(photos(4))
    assert lengths.tolist() == tokens.lengths.tolist()
    expected = reconstruction.add(1).div(2).clamp(0, 1)
    torch.testing.assert_close(model.decode(tokens), expected, rtol=0, atol=1e-3)


def test_bfloat16() -> None:
    model = micro()
    expected = model.encode(photos(3), num_tokens=SLOTS)
    pictures = model.decode(expected)
    model = model.to(torch.bfloat16)
    tokens = model.encode(photos(3), num_tokens=SLOTS, return_p_eos=True)
    assert tokens.dtype == torch.bfloat16 and tokens.p_eos is not None
    assert tokens.p_eos.dtype == torch.float32
    similarity = torch.cosine_similarity(tokens.tokens.float(), expected.tokens, dim=1)
    assert similarity.mean() > 0.97
    images = model.decode(tokens)
    assert images.dtype == torch.float32 and torch.isfinite(images).all()
    assert (images - pictures).abs().mean() < 0.05
    image = pixels(1).bfloat16()
    model(image, torch.tensor([9], dtype=torch.int32))[0].float().pow(2).mean().backward()
    assert dead(model) <= BASELINE | HEAD


def test_compiles_without_graph_breaks() -> None:
    model = micro(generator=replace(STACK, layers=1), token_decoder=replace(STACK, layers=1))
    lengths = torch.tensor([SLOTS, 12], dtype=torch.int32)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        expected, _ = model(pixels(2), lengths)
    reconstruction, same = compiled(pixels(2), lengths)
    assert same.tolist() == lengths.tolist()
    torch.testing.assert_close(reconstruction, expected, rtol=0, atol=1e-3)
    reconstruction.pow(2).mean().backward()
    assert dead(model) == BASELINE | HEAD


def test_autocast_leaves_the_linear_code_alone() -> None:
    """What the token decoder learns from is left of errors that nearly cancel: bfloat16 may drown it."""
    model = micro(shortcut=True, vqgan=replace(MICRO.vqgan, patch_shortcut=True))
    lengths = torch.tensor([2, 8, 20, SLOTS], dtype=torch.int32)
    seen: dict[bool, list[Tensor]] = {False: [], True: []}
    with torch.no_grad():
        tokens = model.generate(model.condition(pixels(4))).tokens
    for autocast, outputs in seen.items():
        assert model.vqgan.patch_in is not None and model.vqgan.patch_out is not None
        hooks = [
            module.register_forward_hook(lambda _, __, output, kept=outputs: kept.append(output))
            for module in (model.vqgan.patch_in, model.token_decoder, model.vqgan.patch_out)
        ]
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast), torch.no_grad():
            latents = model.vqgan.encode(pixels(4))
            image = model.render(tokens, lengths)
        for hook in hooks:
            hook.remove()
        base = model.condition_on(latents).base
        assert base is not None and base.dtype == image.dtype == torch.float32
    for exact, mixed in zip(*seen.values(), strict=True):
        assert mixed.dtype == torch.float32
        torch.testing.assert_close(mixed, exact, rtol=1e-4, atol=1e-4)
