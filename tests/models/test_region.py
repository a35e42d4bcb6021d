"""Tokens for a part of the picture."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from dove_ext import DoveModel, DoveTokens, ops
from dove_ext.metrics import psnr
from dove_ext.models.region import COARSE, FIRST, RegionCode, cell_weights, pixel_weights
from tests.models.micro import MICRO, SLOTS, linear, micro, photos, pixels

pytestmark = pytest.mark.usefixtures("one_thread")
HIDDEN = MICRO.generator.hidden
GRID = MICRO.grid


def corner() -> Tensor:
    """A relevance that is 1 in the upper left quarter of the picture and half of it in the cells beside."""
    cells = torch.zeros(GRID, GRID)
    cells[: GRID // 2, : GRID // 2], cells[: GRID // 2, GRID // 2] = 1, 0.5
    return cells


def rows_of(model: DoveModel, pictures: Tensor, relevance: Tensor) -> Tensor:
    """All tokens [B, K, D] of pictures in [-1, 1]."""
    return model.generate(model.condition(pictures, relevance=relevance.flatten(1))).tokens


def seen(model: DoveModel, tokens: Tensor) -> Tensor:
    """The pictures of the first 1..K of one image's tokens [1, K, D]: [K, 3, S, S]."""
    lengths = torch.arange(1, SLOTS + 1, dtype=torch.int32)
    return model.render(ops.zero_tail(tokens.expand(SLOTS, -1, -1).contiguous(), lengths), lengths)


@pytest.mark.parametrize("channels", [16, 64, 72])  # a part of a token's room in one band, and two bands
def test_blocks_come_back_as_they_were(channels: int) -> None:
    code = RegionCode(grid=4, latent_channels=channels, num_tokens=16, width=64, pixels=3072)
    assert (code.components, code.bands) == (16, -(-channels // 16))
    latents = torch.randn(2, 16, channels)
    blocks = code.blocks(latents)
    assert blocks.shape == (2, code.addresses, 64) and code.addresses == 4 * code.bands
    assert torch.equal(code.whole(blocks), latents)
    # The second block of the first row: cells 2, 3, 6 and 7, of which it holds the first components.
    first = latents[0][[2, 3, 6, 7]][:, :16]
    assert torch.equal(blocks[0, code.bands].view(4, 16)[:, : first.shape[1]], first)


@torch.no_grad()
def test_quality_is_that_of_the_places_that_matter() -> None:
    model = linear()
    picture, cells = 0.4 * pixels(2)[1:], corner()[None]
    condition = model.condition(picture, relevance=cells.flatten(1))
    assert condition.quality is not None
    weight = pixel_weights(cells.flatten(1), MICRO.vqgan.downsampling).expand(SLOTS, -1, -1, -1)
    pictures = seen(model, rows_of(model, picture, cells))
    actual = psnr(pictures, picture.expand(SLOTS, -1, -1, -1), black=-1.0, weight=weight)
    torch.testing.assert_close(condition.quality[0], actual, rtol=0, atol=2e-3)
    assert (condition.quality.diff() >= -1e-4).all()


@torch.no_grad()
def test_the_places_that_matter_come_first_and_all_others_at_last() -> None:
    model = linear()
    picture, cells = 0.4 * pixels(4)[3:], corner()[None]
    tokens = rows_of(model, picture, cells)
    address = tokens[0, :, HIDDEN + 1].long()
    assert (address[:FIRST] == COARSE).all()
    sent = address[FIRST : FIRST + 16]  # 4 x 4 blocks of one band
    assert sent.sort().values.tolist() == list(range(1, 17)) and (address[FIRST + 16 :] == COARSE).all()
    rows, columns = (sent - 1) // 4, (sent - 1) % 4
    inside = (rows < 2) & (columns < 3)
    assert inside[:6].all() and not inside[6:].any()
    pictures = seen(model, tokens)
    everything = model.condition(picture).quality
    assert everything is not None
    # All blocks, and the picture is as good as all tokens of the fixed order make it.
    assert psnr(pictures[FIRST + 15 : FIRST + 16], picture, black=-1.0).item() == pytest.approx(
        float(everything[0, -1]), abs=0.01
    )
    fixed = ops.zero_tail(
        model.generate(model.condition(picture)).tokens, torch.tensor([12], dtype=torch.int32)
    )
    assert model.shortcut is not None
    other = model.vqgan.picture(model.shortcut.latents(fixed))
    quarter = picture[..., :16, :16]
    assert (
        psnr(pictures[11:12, :, :16, :16], quarter, black=-1.0)
        > psnr(other[..., :16, :16], quarter, black=-1.0) + 0.5
    )


@torch.no_grad()
def test_own_length_is_where_the_region_is_good_enough() -> None:
    model = linear(promised_psnr=19.0)
    model.generator.reset_parameters()
    images = photos(8)
    whole = model.encode(images).lengths
    of_region = model.encode(images, relevance=corner())
    quality = model.condition(images.float() / 127.5 - 1, relevance=corner().flatten().expand(8, -1)).quality
    assert quality is not None
    enough = quality >= 19
    expected = torch.where(enough.any(1), enough.int().argmax(1) + 1, SLOTS)
    assert of_region.lengths.tolist() == expected.tolist()
    assert of_region.lengths.sum() < whole.sum()
    blocks = model.encode(images, relevance=corner(), block_size=5, batch_size=4)
    assert torch.equal(blocks.tokens, of_region.tokens)
    target = model.encode(images, relevance=corner(), target_psnr=18.5)
    assert target.psnr is not None and (target.lengths <= of_region.lengths).all()
    weight = pixel_weights(corner().flatten().expand(8, -1), MICRO.vqgan.downsampling)
    reached = psnr(model.decode(target), images / 255, black=0, weight=weight)
    torch.testing.assert_close(target.psnr, reached.float(), rtol=0, atol=1e-3)


@torch.no_grad()
def test_only_the_linear_code_renders_a_region() -> None:
    model = linear()  # its random decoder would change the picture
    tokens = rows_of(model, pixels(2), torch.stack([corner(), corner().T]))
    lengths = torch.tensor([FIRST + 3, 5], dtype=torch.int32)
    kept = ops.zero_tail(tokens, lengths)
    assert model.shortcut is not None and model.region is not None
    address = kept[..., HIDDEN + 1].long()
    code = kept[..., :HIDDEN]
    latents = model.shortcut.latents(code * (address <= 0)[..., None]) + model.region.latents(code, address)
    torch.testing.assert_close(model.render(tokens, lengths), model.vqgan.picture(latents))
    assert (model.render(model.generate(model.condition(pixels(2))).tokens, lengths) - model.vqgan.picture(
        model.shortcut.latents(ops.zero_tail(model.generate(model.condition(pixels(2))).tokens, lengths))
    )).abs().amax() > 0.01  # fmt: skip


@torch.no_grad()
def test_files_keep_addresses_and_damaged_ones_do_no_harm(tmp_path) -> None:  # type: ignore[no-untyped-def]
    model = linear()
    tokens = model.encode(photos(2), relevance=corner(), num_tokens=20)
    tokens.save(tmp_path / "t.safetensors")
    again = DoveTokens.load(tmp_path / "t.safetensors")
    assert torch.equal(model.decode(again), model.decode(tokens))
    half = model.decode(tokens.to(dtype=torch.bfloat16).to(dtype=torch.float32))
    assert psnr(half, model.decode(tokens), black=0).min() > 35
    for wrong in (17.0, 1e30, -1e30, math.nan):
        tokens.tokens[10, HIDDEN + 1] = wrong
        assert model.decode(tokens).shape == (2, 3, 32, 32)


@torch.no_grad()
def test_a_prefix_serves_any_relevance() -> None:
    model = linear(promised_psnr=19.0)
    model.generator.reset_parameters()
    images, maps = photos(4), torch.stack([corner(), corner().T, torch.ones(GRID, GRID), corner()])
    seen = model.prefix(images)
    for options in ({}, {"num_tokens": 20}, {"target_psnr": 18.5}):
        anew = model.encode(images, relevance=maps, **options)
        again = model.encode(seen, relevance=maps, batch_size=3, **options)
        assert again.lengths.tolist() == anew.lengths.tolist()
        torch.testing.assert_close(again.tokens, anew.tokens, rtol=0, atol=1e-3)
    whole = model.encode(seen, num_tokens=20).tokens  # and none
    torch.testing.assert_close(whole, model.encode(images, num_tokens=20).tokens, rtol=0, atol=1e-3)


@pytest.mark.parametrize(
    ("relevance", "message"),
    [
        (torch.zeros(2, 8, 8), "the relevance of image 0 is zero everywhere; leave it out"),
        (-corner(), "the relevance of image 0 has a negative value or one that is not finite"),
        (torch.full((8, 8), math.nan), "has a negative value or one that is not finite"),
        (torch.ones(3, 8, 8), r"relevance must be \[h, w\], or \[2, h, w\] for 2 images, got \[3, 8, 8\]"),
        (torch.ones(8), "relevance must be"),
        ("the dog", "relevance must be an array of numbers"),
        ([[1, 2], [3]], "relevance must be an array of numbers"),
    ],
)
def test_relevance_that_means_nothing(relevance: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        linear().encode(photos(2), relevance=relevance)


def test_models_without_a_linear_code_refuse_a_relevance() -> None:
    with pytest.raises(ValueError, match="this model has no code for regions"):
        micro().encode(photos(1), relevance=torch.ones(8, 8))


def test_maps_of_any_size_become_weights_of_cells() -> None:
    mask = torch.zeros(1, 32, 64)
    mask[0, :16, :32] = 255
    cells = cell_weights(mask[0], 3, 4, mask.device)
    assert cells.tolist() == [[1.0, 1, 0, 0, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]] * 3
    assert cell_weights([[1, 0], [0, 0]], 1, 4, mask.device).sum() == 4
    assert pixel_weights(cells, 2).shape == (3, 1, 8, 8) and pixel_weights(cells, 2)[0, 0, 3, 3] == 1


def test_huge_maps_say_what_small_ones_say() -> None:
    marked = torch.zeros(1, 512, 512)
    marked[:, 100:300, 40:77] = 1
    expected = cell_weights(marked, 1, 4, torch.device("cpu"))
    assert torch.equal(cell_weights(3e38 * marked, 1, 4, torch.device("cpu")), expected)


def test_a_dtype_that_cannot_tell_addresses_apart_is_refused() -> None:
    code = RegionCode(grid=32, latent_channels=128, num_tokens=1024, width=128, pixels=3072)
    assert code.addresses == 1024
    for dtype, works in ((torch.float16, True), (torch.bfloat16, False)):
        eps = torch.finfo(dtype).eps
        assert (code.addresses <= 2 / eps) == works
    assert torch.arange(257).to(torch.bfloat16).long().tolist() == list(range(257))
