"""The VQGAN as it runs on a GPU, biases and paddings left to the kernels, through the emulated ones."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

import dove_ext
from dove_ext.config import VQGANConfig
from dove_ext.models import vqgan
from dove_ext.models.vqgan import VQGAN
from dove_ext.ops.backend import has_kernels
from tests.simt.emulated import emulation

pytestmark = pytest.mark.usefixtures("one_thread")

# Every place at which a bias may wait: blocks that keep and that change the width, attention, both
# resamplings, the picture of the shortcut.
CONFIG = VQGANConfig(
    channels=32, channel_multipliers=(1, 1, 2), encoder_blocks=1, decoder_blocks=1, latent_channels=32,
    codebook_size=0, patch_shortcut=True,
)  # fmt: skip


@pytest.fixture(scope="module")
def model() -> VQGAN:
    torch.manual_seed(5)
    model = VQGAN(CONFIG).to(memory_format=torch.channels_last)
    for name, parameter in model.named_parameters():
        if parameter.dim() == 1:  # biases as large as what they are added to, norms that are not the identity
            torch.nn.init.normal_(parameter, 1.0 if name.endswith("weight") else 0.0, 0.5)
    return model


def round_trip(model: VQGAN, image: Tensor) -> list[Tensor]:
    """Latents and picture, then the gradients of all parameters and of the image."""
    image = image.clone().requires_grad_()
    latents = model.encode(image)
    pixels = model.decode(latents)
    weights = torch.linspace(-1, 1, pixels.numel(), dtype=pixels.dtype).reshape(pixels.shape)
    gradients = torch.autograd.grad((pixels * weights).sum(), [image, *model.parameters()])
    return [latents.detach(), pixels.detach(), *gradients]


def plainly(model: VQGAN, image: Tensor) -> list[Tensor]:
    previous = dove_ext.set_backend("torch")
    try:
        return round_trip(model, image)
    finally:
        dove_ext.set_backend(previous)


@pytest.mark.parametrize("computed", ["emulated", "by the CPU"])
def test_equals_the_plain_model(
    computed: str, model: VQGAN, simt: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(6)) * 2 - 1
    plain, exact = plainly(model, image), plainly(model.double(), image.double())
    model.float()
    monkeypatch.setattr(vqgan, "leaves_bias", has_kernels)
    added: list[Tensor | None] = []
    conv2d = torch.nn.functional.conv2d

    def watched(x: Tensor, weight: Tensor, bias: Tensor | None = None, *how: Any) -> Tensor:
        added.append(bias)
        return conv2d(x, weight, bias, *how)

    monkeypatch.setattr(torch.nn.functional, "conv2d", watched)
    if computed == "emulated":
        with emulation(simt):
            actual = round_trip(model, image)
    else:
        actual = round_trip(model, image)
    # conv_out, quant_conv and post_quant_conv, the attention's q, k and v, and the shortcut keep theirs.
    assert sum(bias is None for bias in added) >= 20
    for a, p, e in zip(actual, plain, exact, strict=True):
        scale = e.abs().max()
        assert a.shape == e.shape and a.dtype == torch.float32
        assert (a - e).abs().max() <= 3 * (p - e).abs().max() + 1e-6 * scale
