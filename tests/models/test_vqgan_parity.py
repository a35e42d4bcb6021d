"""A VQGAN of dove-base's depth against an independent implementation, and dove-base's published sizes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

import dove_ext
from dove_ext.config import VQGANConfig
from dove_ext.models.vqgan import VQGAN, Quantizer
from tests.models import reference_vqgan as reference


@pytest.fixture(scope="module")
def vqgan() -> VQGAN:
    torch.manual_seed(0)
    # Half as wide as dove-base's: a quarter of the memory and of the work in float64.
    model = VQGAN(VQGANConfig(channels=64, codebook_size=64)).eval()
    for name, parameter in model.named_parameters():
        if "norm" in name:  # new norms are the identity, which would hide a mix-up
            torch.nn.init.normal_(parameter, 1.0 if name.endswith("weight") else 0.0, 0.2)
    torch.nn.init.normal_(model.quantize.embedding.weight, std=0.2)
    return model.to(memory_format=torch.channels_last)


@pytest.fixture(params=["auto", "torch"])
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    previous = dove_ext.set_backend(request.param)
    yield request.param
    dove_ext.set_backend(previous)


def deviation(ours: Tensor, exact: Tensor) -> float:
    """Largest error as a share of the largest value."""
    return ((ours.double() - exact).abs().max() / exact.abs().max()).item()


@dataclass
class Expected:
    """The reference's results: in float64, and how far float32 is from that."""

    image: Tensor
    latents: Tensor
    latents_error: float
    pixels: Tensor  # decoded from four of the latents: the decoder is slow in float64
    pixels_error: float


@pytest.fixture(scope="module")
def expected(vqgan: VQGAN) -> Expected:
    weights = vqgan.state_dict()
    exact = {name: tensor.double() for name, tensor in weights.items()}
    image = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(2)) * 2 - 1
    latents = reference.encode(exact, image.double())
    pixels = reference.decode(exact, latents[:, :4])
    return Expected(
        image,
        latents,
        deviation(reference.encode(weights, image), latents),
        pixels,
        deviation(reference.decode(weights, latents[:, :4].float()), pixels),
    )


@torch.no_grad()
def test_equals_reference(vqgan: VQGAN, expected: Expected, backend: str) -> None:
    times = 2 if backend == "torch" else 5  # conv3x3's transforms cost two bits of float32's 24
    latents = vqgan.encode(expected.image)
    assert latents.shape == (1, 16, 256)
    assert deviation(latents, expected.latents) <= times * expected.latents_error + 1e-6
    pixels = vqgan.decode(expected.latents[:, :4].float())
    assert pixels.shape == (1, 3, 32, 32)
    assert deviation(pixels, expected.pixels) <= times * expected.pixels_error + 1e-6


@torch.no_grad()
def test_quantiser(vqgan: VQGAN, expected: Expected) -> None:
    quantised, indices = vqgan.quantize(expected.latents.float())
    assert torch.equal(indices, reference.quantize(vqgan.state_dict(), expected.latents.float()))
    assert len(indices.unique()) > 1
    torch.testing.assert_close(quantised, vqgan.quantize.embedding.weight[indices])


@pytest.mark.parametrize("lowered", ["weights", "autocast"])
def test_quantiser_in_bfloat16(lowered: str) -> None:
    """Codes so close together that bfloat16 sums cannot tell which of them is the nearest."""
    codes = (8 + torch.arange(16) / 16)[:, None].expand(16, 64)
    quantiser = Quantizer(16, 64)
    quantiser.embedding.weight.data.copy_(codes)
    latents = (codes + 0.02)[None].clone()
    if lowered == "weights":
        quantiser, latents = quantiser.bfloat16(), latents.bfloat16()
    latents.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=lowered == "autocast"):
        quantised, indices = quantiser(latents)
    assert indices.tolist() == [list(range(16))]
    assert torch.equal(quantised[0].float(), codes)
    quantised.sum().backward()
    assert latents.grad is not None and bool((latents.grad == 1).all())


def count(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_published_sizes() -> None:
    with torch.device("meta"):
        model = dove_ext.DoveModel("dove-base")
    vqgan = model.vqgan
    # The published figures, in millions, count the 1x1 convolution on either side of the quantiser.
    assert round((count(vqgan.encoder) + count(vqgan.quant_conv)) / 1e6, 1) == 29.4
    assert round((count(vqgan.decoder) + count(vqgan.post_quant_conv)) / 1e6, 1) == 42.5
    assert count(model.generator.stack) == count(model.token_decoder.stack)
    assert round(count(model.generator.stack) / 1e6, 1) == 18.9
    assert model.generator.embed_out.weight.shape == (50304, 512)
    assert model.generator.embed_out.bias is None
    assert model.config.num_tokens == 256


def test_names_of_taming() -> None:
    with torch.device("meta"):
        names = set(VQGAN(VQGANConfig()).state_dict())
    attention = {name.split(".norm")[0] for name in names if ".attn" in name and name.endswith("norm.weight")}
    assert attention == {
        *(f"encoder.down.4.attn.{j}" for j in range(2)),
        *(f"decoder.up.4.attn.{j}" for j in range(3)),
        "encoder.mid.attn_1",
        "decoder.mid.attn_1",
    }
    shortcuts = {name.split(".nin_")[0] for name in names if "nin_shortcut.weight" in name}
    assert shortcuts == {
        "encoder.down.2.block.0",  # 128 to 256
        "encoder.down.4.block.0",  # 256 to 512
        "decoder.up.3.block.0",  # 512 to 256
        "decoder.up.1.block.0",  # 256 to 128
    }
    assert {name.split(".")[2] for name in names if "downsample" in name} == set("0123")
    assert {name.split(".")[2] for name in names if "upsample" in name} == set("1234")
    assert {"quantize.embedding.weight", "quant_conv.weight", "post_quant_conv.bias"} <= names
