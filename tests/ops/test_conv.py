"""What the case table does not say about conv3x3: independence, packed weights, errors, the VQGAN."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor

import dove_ext
from dove_ext import ops
from dove_ext.config import VQGANConfig
from dove_ext.models.vqgan import CPU_BATCH, VQGAN, Conv3x3


def inputs(batch: int = 5, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(batch, 64, 20, 36, generator=generator).contiguous(memory_format=torch.channels_last)
    return {
        "x": x.to(dtype),
        "weight": torch.randn(64, 64, 3, 3, generator=generator).to(dtype) / 24,
        "bias": torch.rand(64, generator=generator).to(dtype),
        "norm_weight": torch.rand(64, generator=generator).to(dtype),
        "norm_bias": torch.rand(64, generator=generator).to(dtype),
        "residual": x.flip(0).to(dtype),
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_images_do_not_depend_on_their_batch(dtype: torch.dtype) -> None:
    together = ops.conv3x3(**inputs(dtype=dtype))
    for image in range(5):
        alone = inputs(dtype=dtype)
        alone["x"], alone["residual"] = (alone[n][image : image + 1] for n in ("x", "residual"))
        assert torch.equal(ops.conv3x3(**alone)[0], together[image])


def test_other_images_may_hold_nan() -> None:
    broken = inputs()
    broken["x"][2] = float("nan")
    out, expected = ops.conv3x3(**broken), ops.conv3x3(**inputs())
    assert torch.isnan(out[2]).all()
    assert torch.equal(out[[0, 1, 3, 4]], expected[[0, 1, 3, 4]])


def test_packed_weights_give_the_same() -> None:
    given = inputs()
    assert torch.equal(ops.conv3x3(**given, packed=ops.pack_conv3x3(given["weight"])), ops.conv3x3(**given))


def test_float32_errs_less_than_bfloat16_rounds() -> None:
    given = inputs()
    exact = ops.reference.conv3x3(**{n: t.double() for n, t in given.items()})
    error = (ops.conv3x3(**given).double() - exact).pow(2).mean().sqrt() / exact.pow(2).mean().sqrt()
    assert error < 2e-6


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weight": torch.zeros(64, 32, 3, 3)}, "weight"),
        ({"weight": torch.zeros(64, 64, 5, 5)}, "weight"),
        ({"bias": torch.zeros(3)}, r"bias must be \[64\]"),
        ({"norm_bias": None}, "both or neither"),
        ({"norm_weight": torch.zeros(3)}, r"norm_weight must be \[64\]"),
        ({"groups": 7}, "groups must divide the 64 channels"),
        ({"residual": torch.zeros(5, 64, 20, 35)}, "residual must be"),
    ],
)
def test_shapes_that_do_not_fit_are_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ops.conv3x3(**inputs() | change)


@pytest.mark.parametrize(
    "change",
    [
        lambda packed: packed[:-1],
        lambda packed: packed.double(),
        lambda packed: packed[:1].expand(packed.shape),
        lambda packed: packed.to("meta"),
    ],
    ids=["short", "dtype", "strided", "device"],
)
def test_foreign_packed_weights_are_refused(change: Any) -> None:
    given = inputs()
    with pytest.raises(ValueError, match="conv3x3: packed must be"):
        ops.conv3x3(**given, packed=change(ops.pack_conv3x3(given["weight"])))


def test_a_gradient_is_refused() -> None:
    given = inputs()
    given["weight"].requires_grad_()
    out = ops.conv3x3(**given)
    with pytest.raises(RuntimeError, match="conv3x3: the compiled kernel is for inference, it has no"):
        out.sum().backward()


def test_residual_of_another_dtype_is_refused() -> None:
    with pytest.raises(TypeError, match=r"residual must be torch\.float32"):
        ops.conv3x3(**inputs() | {"residual": inputs()["residual"].bfloat16()})


def test_channels_that_do_not_fill_a_vector_are_refused() -> None:
    with pytest.raises(ValueError, match="multiples of 32"):
        ops.conv3x3(torch.zeros(1, 33, 4, 4), torch.zeros(32, 33, 3, 3), torch.zeros(32))


# --- The VQGAN ---------------------------------------------------------------------------------------


def vqgan() -> VQGAN:
    torch.manual_seed(0)
    config = VQGANConfig(
        channels=32, channel_multipliers=(1, 2), encoder_blocks=1, decoder_blocks=1, latent_channels=32
    )
    return VQGAN(config).eval()


@torch.no_grad()
def test_fused_vqgan_equals_the_plain_one() -> None:
    model, pixels = vqgan(), torch.rand(3, 3, 24, 24)
    latents = model.encode(pixels)
    image = model.decode(latents)
    dove_ext.set_backend("torch")
    try:
        torch.testing.assert_close(latents, model.encode(pixels), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(image, model.decode(latents), rtol=1e-4, atol=1e-5)
    finally:
        dove_ext.set_backend("auto")


def test_training_keeps_its_gradient() -> None:
    model = vqgan()
    model.decode(model.encode(torch.rand(1, 3, 24, 24))).sum().backward()
    assert all(p.grad is not None for n, p in model.named_parameters() if not n.startswith("quantize"))


@torch.no_grad()
def test_a_batch_in_parts_is_the_same() -> None:
    model, pixels = vqgan(), torch.rand(CPU_BATCH + 1, 3, 24, 24)
    parts = torch.cat([model.encode(pixels[:CPU_BATCH]), model.encode(pixels[CPU_BATCH:])])
    assert torch.equal(model.encode(pixels), parts)


@torch.no_grad()
def test_changed_weights_are_packed_anew() -> None:
    conv, x = Conv3x3(32, 32), torch.rand(1, 32, 8, 8)
    before = conv(x)
    conv.weight.mul_(2)
    assert not torch.equal(conv(x), before)
    conv.weight.data = conv.weight.data / 2
    torch.testing.assert_close(conv(x), before)
    conv.load_state_dict({n: t * 3 for n, t in conv.state_dict().items()})
    torch.testing.assert_close(conv(x), 3 * before)


@torch.no_grad()
def test_packed_weights_are_not_saved() -> None:
    conv, x = Conv3x3(32, 32), torch.rand(1, 32, 8, 8)
    before = conv(x)
    assert set(conv.state_dict()) == {"weight", "bias"}
    loaded = pickle.loads(pickle.dumps(conv))
    assert loaded._packed._made is None
    assert torch.equal(loaded(x), before)
    assert torch.equal(copy.deepcopy(conv)(x), before)


@torch.inference_mode()
def test_inference_mode() -> None:
    conv, x = Conv3x3(32, 32), torch.rand(1, 32, 8, 8)
    torch.testing.assert_close(conv(x), torch.nn.functional.conv2d(x, conv.weight, conv.bias, padding=1))
