"""What the shipped model promises, on pictures of kinds that no weight was trained on."""

from __future__ import annotations

import pytest
import torch

import dove_ext
from dove_ext import ops
from dove_ext.images import drawn
from dove_ext.metrics import psnr
from dove_ext.models.dove import DoveModel

KINDS = ("paragraph", "checkerboard", "lines", "stars", "qr code", "flat")
REPAIR_COSTS = 0.3  # dB at most


@pytest.fixture(scope="module")
def model() -> DoveModel:
    return dove_ext.load_model("dove-tiny", dtype=torch.float32)


@pytest.fixture(scope="module")
def pictures() -> torch.Tensor:
    assert set(KINDS) <= set(drawn.HELD_BACK)
    return torch.stack([drawn.draw(kind, 5) for kind in KINDS])


@torch.no_grad()
def test_every_kind_gets_what_is_promised(model: DoveModel, pictures: torch.Tensor) -> None:
    tokens = model.encode(pictures)
    reached = psnr(model.decode(tokens), pictures / 255, black=0.0, ceiling=100.0)
    promised = model.config.promised_psnr
    for kind, length, quality in zip(KINDS, tokens.lengths.tolist(), reached.tolist(), strict=True):
        assert quality > promised - 0.3 or length == model.config.num_tokens, (kind, length, quality)
    assert tokens.lengths.min() == 1 and tokens.lengths.unique().numel() > 3


@torch.no_grad()
def test_a_small_dot_is_kept(model: DoveModel) -> None:
    dot = torch.zeros(1, 3, 256, 256, dtype=torch.uint8)
    dot[..., 120:126, 120:126] = 255
    tokens = model.encode(dot)
    assert 4 <= int(tokens.lengths) < 64
    assert model.decode(tokens)[..., 120:126, 120:126].mean() > 0.4


@torch.no_grad()
@pytest.mark.parametrize("count", [4, 32])
def test_repair_spoils_nothing(model: DoveModel, pictures: torch.Tensor, count: int) -> None:
    assert model.shortcut is not None
    pixels = pictures / 127.5 - 1
    lengths = torch.full((len(pixels),), count, dtype=torch.int32)
    tokens = ops.zero_tail(model.generate(model.condition(pixels)).tokens, lengths)
    linear = psnr(model.vqgan.picture(model.shortcut.latents(tokens)), pixels, black=-1.0, ceiling=100.0)
    repaired = psnr(model.render(tokens, lengths), pixels, black=-1.0, ceiling=100.0)
    assert (repaired - linear).min() > -REPAIR_COSTS
    assert (repaired - linear).abs().max() > 0.05  # it does something
