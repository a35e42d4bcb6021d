"""The linear shortcut: a code whose quality is known, and what the model makes of it."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch import Tensor

from dove_ext import ops
from dove_ext.metrics import psnr
from dove_ext.models.dove import LARGEST_REPAIR, DoveModel
from dove_ext.models.generator import QUALITY_STEP
from dove_ext.models.shortcut import BEST_QUALITY, CONCENTRATION, FrequencyShortcut, dct_basis
from tests.models.micro import MICRO, SLOTS, linear, micro, photos, pixels, stop_at_share

pytestmark = pytest.mark.usefixtures("one_thread")
TOLERANCE = {"rtol": 0.0, "atol": 1e-3}  # see test_encode.py
HIDDEN = MICRO.generator.hidden


def of_all_lengths(model: DoveModel, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """One image's tokens [1, K, D] as K images that keep 1..K of them, and these lengths."""
    lengths = torch.arange(1, SLOTS + 1, dtype=torch.int32)
    return ops.zero_tail(tokens.expand(SLOTS, -1, -1).contiguous(), lengths), lengths


def test_dct_basis_is_orthonormal() -> None:
    basis = dct_basis(8)
    torch.testing.assert_close(basis @ basis.T, torch.eye(64), rtol=0, atol=1e-5)
    torch.testing.assert_close(basis[0], torch.full((64,), 1 / 8))


def arranged(kept_slots: int = 64) -> FrequencyShortcut:
    shortcut = FrequencyShortcut(grid=8, latent_channels=16, num_tokens=kept_slots, width=8, pixels=3072)
    generator = torch.Generator().manual_seed(5)
    count = shortcut.coefficients
    shortcut.arrange(torch.rand(count, generator=generator) + 0.1, torch.rand(count, generator=generator))
    return shortcut


@torch.no_grad()
def test_shortcut_inverts_kept_coefficients() -> None:
    shortcut = arranged()
    assert shortcut.kept == 64 * 8 < shortcut.coefficients == 1024
    tokens = torch.randn(2, 64, 8)
    torch.testing.assert_close(shortcut.code(shortcut.latents(tokens)), tokens, rtol=0, atol=1e-4)
    latents = torch.randn(2, 64, 16)
    once = shortcut.latents(shortcut.code(latents))
    torch.testing.assert_close(shortcut.latents(shortcut.code(once)), once, rtol=0, atol=1e-4)
    # What is lost is exactly the energy of the coefficients that are not kept.
    coefficients = shortcut.transform(latents)
    coefficients[:, shortcut.order.long()] = 0
    torch.testing.assert_close((latents - once).pow(2).sum(), coefficients.pow(2).sum(), rtol=1e-4, atol=0)


@torch.no_grad()
def test_shortcut_with_room_for_all_is_the_identity() -> None:
    shortcut = FrequencyShortcut(grid=8, latent_channels=16, num_tokens=64, width=32, pixels=3072)
    assert shortcut.kept == shortcut.coefficients
    latents = torch.randn(1, 64, 16)
    tokens = shortcut.code(latents)
    assert tokens.shape == (1, 64, 32)
    assert not tokens.flatten(1)[:, shortcut.kept :].any()
    torch.testing.assert_close(shortcut.latents(tokens), latents, rtol=0, atol=1e-5)


def test_arrange_orders_by_worth() -> None:
    shortcut = FrequencyShortcut(grid=2, latent_channels=2, num_tokens=4, width=1, pixels=48)
    variance = torch.tensor([1.0, 4.0, 9.0, 1.0, 1.0, 16.0, 0.0, 1.0])
    worth = torch.tensor([1.0, 1.0, 0.1, 5.0, 1.0, 1.0, 99.0, 0.5])
    shortcut.arrange(variance, worth)
    assert shortcut.order.tolist() == [5, 3, 1, 0]  # worth 16, 5, 4, 1; ties: the lower first
    assert shortcut.scale.tolist() == [4.0, 1.0, 2.0, 1.0]


# --- Its quality --------------------------------------------------------------------------------------


@torch.no_grad()
def test_quality_is_exact_for_any_picture() -> None:
    model = linear()
    assert model.shortcut is not None
    pictures = torch.cat([0.4 * pixels(1), torch.zeros(1, 3, 32, 32)])  # within the range: nothing is cut off
    pictures[1, :, 7, 9] = 0.9  # a single point
    condition = model.condition(pictures)
    assert condition.quality is not None and condition.quality.dtype == torch.float32
    for base, quality, picture in zip(condition.base, condition.quality, pictures, strict=True):
        kept, _ = of_all_lengths(model, base[None])
        actual = psnr(
            model.vqgan.picture(model.shortcut.latents(kept)), picture.expand(SLOTS, -1, -1, -1), black=-1.0
        )
        torch.testing.assert_close(quality, actual, rtol=0, atol=2e-3)
        assert quality[-1] - quality[0] > 1


@torch.no_grad()
def test_tokens_carry_the_error_of_their_prefix() -> None:
    model = linear()
    assert model.shortcut is not None
    condition = model.condition(0.4 * pixels(1))
    tokens = model.generate(condition).tokens
    assert tokens.shape[-1] == model.config.token_width == HIDDEN + 2
    error = model.shortcut.error(*of_all_lengths(model, tokens))
    assert condition.quality is not None
    torch.testing.assert_close(-20 * (error / 2).log10(), condition.quality[0], rtol=0, atol=1e-4)


@torch.no_grad()
def test_quality_has_a_ceiling() -> None:
    model = linear()
    assert model.shortcut is not None
    code = torch.zeros(1, SLOTS, HIDDEN)
    assert (model.shortcut.quality(code, model.vqgan.worth, torch.zeros(1, SLOTS)) == BEST_QUALITY).all()
    lost = model.shortcut.quality(code, model.vqgan.worth, torch.full((1, SLOTS), 4 * 10**-2.5))
    torch.testing.assert_close(lost, torch.full_like(lost, 25.0))


@torch.no_grad()
def test_a_new_model_stops_where_the_code_is_good_enough() -> None:
    model = linear(promised_psnr=22.0)
    model.generator.reset_parameters()
    pictures = photos(6)
    quality = model.condition(pictures.float() / 127.5 - 1).quality
    assert model.config.promised_psnr == 22 and quality is not None
    enough = quality >= 22
    expected = torch.where(enough.any(1), enough.int().argmax(1) + 1, SLOTS)
    lengths = model.encode(pictures).lengths
    assert lengths.tolist() == expected.tolist() and lengths.unique().numel() > 2
    flat = torch.full((1, 3, 32, 32), 128, dtype=torch.uint8)
    assert model.encode(flat).lengths.tolist() == [1]


@torch.no_grad()
def test_the_stop_head_reads_the_quality_before_its_position() -> None:
    model = linear()
    condition = model.condition(pixels(2))
    whole = model.generator(condition)
    assert whole.shape == (2, SLOTS, HIDDEN + 1) and condition.quality is not None
    assert condition.margin is not None
    needed = model.config.promised_psnr + condition.margin
    above = (condition.quality[:, :-1] - needed[:, None]) / QUALITY_STEP
    torch.testing.assert_close(whole[:, 1:, -1], above)
    assert (whole[:, 0, -1] == -needed / QUALITY_STEP).all()


@torch.no_grad()
def test_a_picture_whose_content_is_in_one_place_needs_more() -> None:
    model = linear(promised_psnr=20.0)
    model.generator.reset_parameters()
    assert model.shortcut is not None
    spread = model.condition(pixels(4)).margin
    assert spread is not None and not spread.any()
    dot = torch.full((1, 3, 32, 32), -1.0)
    dot[..., 13:15, 14:16] = 1  # in one patch of 64: 10 log10(64) - 16 dB
    assert model.condition(dot).margin.item() == pytest.approx(10 * math.log10(64) - CONCENTRATION, abs=0.3)
    # Half a patch in each of two.
    dot[..., 17:19, 14:16] = 1
    assert model.condition(dot).margin.item() == 0
    flat = model.condition(torch.full((1, 3, 32, 32), 0.3)).margin
    assert flat is not None and not flat.any() and not flat.isnan().any()


@torch.no_grad()
def test_the_decoder_cannot_spoil_what_the_code_has_right() -> None:
    model = linear()  # its random decoder would change pictures by far more than what is missing
    assert model.shortcut is not None
    tokens, lengths = of_all_lengths(model, model.generate(model.condition(0.4 * pixels(1))).tokens)
    left = model.shortcut.error(tokens, lengths)
    change = model.render(tokens, lengths) - model.vqgan.picture(model.shortcut.latents(tokens))
    size = change.square().flatten(1).mean(1).sqrt()
    torch.testing.assert_close(size, LARGEST_REPAIR * left, rtol=1e-3, atol=1e-6)
    model.vqgan.decoder.conv_out.weight.mul_(1e-4), model.vqgan.decoder.conv_out.bias.zero_()
    model.token_decoder.to_latent.weight.mul_(1e-4), model.token_decoder.to_latent.bias.zero_()
    change = model.render(tokens, lengths) - model.vqgan.picture(model.shortcut.latents(tokens))
    small = change.square().flatten(1).mean(1).sqrt()
    assert (small < 0.9 * LARGEST_REPAIR * left).all() and (small > 0).all()  # as it is


# --- In a model ---------------------------------------------------------------------------------------


def test_time_positions_read_the_shortcuts_tokens() -> None:
    model = micro(shortcut=True)
    latents = torch.randn(2, SLOTS, 16, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        condition = model.condition_on(latents)
        assert condition.base is not None
        before = model.generator(condition)
        condition.base[1, 5] += 1.0
        after = model.generator(condition)
    assert torch.equal(before[0], after[0]) and torch.equal(before[1, :5], after[1, :5])  # causal
    assert (before[1, 5:] - after[1, 5:]).abs().amax(1).min() > 0
    assert (before[1, 5] - after[1, 5]).abs().max() > 0.1


def test_a_condition_of_another_model_is_refused() -> None:
    """Without its shortcut's tokens a model would make other tokens and not say so."""
    with_shortcut, without = micro(shortcut=True), micro()
    for model, other in ((with_shortcut, without), (without, with_shortcut)):
        with pytest.raises(ValueError, match="the condition is another model's"):
            model.generate(other.condition(pixels(1)))


def test_new_shortcut_is_coarse_to_fine() -> None:
    shortcut = FrequencyShortcut(grid=4, latent_channels=3, num_tokens=16, width=3, pixels=768)
    frequency = shortcut.order.long() // 3
    radius = (frequency // 4) ** 2 + (frequency % 4) ** 2
    assert (radius.diff() >= 0).all() and frequency[:3].tolist() == [0, 0, 0]


def test_shortcut_model_starts_as_its_linear_code() -> None:
    torch.manual_seed(0)
    model = DoveModel(micro(shortcut=True).config).eval()
    with torch.no_grad():
        model.vqgan.decoder.conv_out.weight.zero_()
        model.vqgan.decoder.conv_out.bias.zero_()
        latents = model.vqgan.encode(pixels(2))
        tokens = model.generate(model.condition(pixels(2))).tokens
        torch.testing.assert_close(tokens[..., :HIDDEN], model.shortcut.code(latents))
        lengths = torch.tensor([SLOTS, 5], dtype=torch.int32)
        tokens[1, 5:] = 0
        expected = model.vqgan.decode(model.shortcut.latents(tokens))
        torch.testing.assert_close(model.render(tokens, lengths), expected)


def test_shortcut_in_blocks_equals_single_pass() -> None:
    model = stop_at_share(micro(shortcut=True))
    with torch.no_grad():
        tokens = model.generate(model.condition(pixels(4))).tokens
    result = model.encode(photos(4), block_size=5)
    for ours, row in zip(result.to_list(), tokens, strict=True):
        torch.testing.assert_close(ours, row[: len(ours)], **TOLERANCE)


@torch.no_grad()
def test_the_generator_adds_a_semantic_part() -> None:
    model = micro(shortcut=True, semantic_width=24)
    condition = model.condition(pixels(2))
    tokens, hidden, _ = model.generate(condition)
    assert tokens.shape == (2, SLOTS, HIDDEN + 26) and model.config.token_width == HIDDEN + 26
    assert condition.base is not None and torch.equal(tokens[..., : HIDDEN + 1], condition.base)
    assert not tokens[..., HIDDEN + 1].any()  # the address: all in the fixed order
    assert torch.equal(tokens[..., HIDDEN + 2 :], model.generator.semantics(hidden))
    # It says something else at each place and of each image, and changes no picture.
    assert tokens[..., HIDDEN + 2 :].std(1).min() > 0.01
    lengths = torch.tensor([SLOTS, 9], dtype=torch.int32)
    silenced = torch.cat([tokens[..., : HIDDEN + 2], torch.zeros(2, SLOTS, 24)], -1)
    assert torch.equal(model.render(tokens, lengths), model.render(silenced, lengths))
    with pytest.raises(ValueError, match="have no semantic part"):
        micro(shortcut=True).generator.semantics(hidden)


@torch.no_grad()
def test_gaussian_tokens_keep_their_quality() -> None:
    model = micro(shortcut=True, semantic_width=8, gaussian=True).train()
    condition = model.condition(pixels(2))
    drawn, again = (model.generate(condition).tokens for _ in range(2))
    assert condition.base is not None
    assert torch.equal(drawn[..., HIDDEN], condition.base[..., HIDDEN])
    assert not drawn[..., HIDDEN + 1].any()
    assert not torch.equal(drawn[..., :HIDDEN], again[..., :HIDDEN])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"shortcut": True}, "shortcut=True needs vqgan.patch_shortcut=True"),
        ({"semantic_width": 8}, "semantic_width needs shortcut=True"),
        ({"promised_psnr": 0.0}, "promised_psnr must be between 0 and 100 dB, got 0.0"),
    ],
)
def test_configurations_that_mean_nothing(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(MICRO, **changes)
    with pytest.raises(ValueError, match="encoder_blocks=0 needs patch_shortcut=True"):
        dataclasses.replace(MICRO.vqgan, encoder_blocks=0)
