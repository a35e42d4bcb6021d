"""The peer systems of the benchmarks: their size, their work, and how they behave."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.tokenizers.peers.alit import ALIT
from benchmarks.tokenizers.peers.codebook import UnitCodebook, nearest
from benchmarks.tokenizers.peers.maskgit_vqgan import Residual
from benchmarks.tokenizers.peers.titok import Shape, TiTok
from benchmarks.tokenizers.peers.vqgan import VQGAN
from tests.benchmarks.tokenizers.small import SMALL_TITOK, pictures, small_alit, small_base

# Published sizes, in millions of parameters and in 1e9 multiply-adds.


def millions(model: nn.Module) -> float:
    return sum(p.numel() for p in model.parameters()) / 1e6


@pytest.mark.parametrize(("name", "expected"), [("S-128", 84), ("B-64", 205), ("L-32", 641)])
def test_titok_has_its_published_size(name: str, expected: int) -> None:
    with torch.device("meta"):
        assert round(millions(TiTok(name))) == expected


def test_alit_and_vqgan_have_their_published_size() -> None:
    with torch.device("meta"):
        alit, vqgan = ALIT(), VQGAN()
    assert round(millions(alit.base), 1) == 54.5
    assert round(millions(alit) - millions(alit.base)) == 208
    assert round(millions(vqgan)) == 74


@pytest.mark.parametrize(("tokens", "expected"), [(32, 30.5), (64, 64.5), (128, 143), (256, 345)])
def test_the_work_of_alit_grows_with_every_roll_out(tokens: int, expected: float) -> None:
    with torch.device("meta"):
        alit = ALIT().requires_grad_(False)
        images = torch.empty(1, 257, 1024)
    with FlopCounterMode(display=False) as counter:
        assert alit.allocate(images, tokens).shape == (1, tokens)
    assert counter.get_total_flops() / 2e9 == pytest.approx(expected, rel=2e-3)


# Codebooks.


def test_nearest_entry_by_brute_force() -> None:
    latents, entries = torch.randn(2, 5, 7), torch.randn(40, 7)
    expected = torch.cdist(latents.double(), entries.double()).argmin(-1)
    assert torch.equal(nearest(latents, entries), expected)


def test_unit_codebook_compares_directions() -> None:
    book = UnitCodebook(50, 12)
    codes = torch.arange(50).view(2, 25)
    assert torch.equal(book.encode(book.embedding(codes) * 7), codes)
    torch.testing.assert_close(book.decode(codes).norm(dim=-1), torch.ones(2, 25))


# MaskGIT's VQGAN.


def test_maskgit_shortcut_reads_the_second_convolution() -> None:
    block, x = Residual(32, 64), torch.randn(1, 32, 4, 4)
    h = block.conv2(F.silu(block.norm2(block.conv1(F.silu(block.norm1(x))))))
    assert block.nin_shortcut is not None
    torch.testing.assert_close(block(x), h + block.nin_shortcut(h))


def test_maskgit_decodes_the_mean_entry() -> None:
    base = small_base()
    codes = torch.randint(16, (1, 256))
    certain = F.one_hot(codes, 16).float()
    grid = base.codebook(codes).transpose(1, 2).reshape(1, 32, 16, 16)
    torch.testing.assert_close(base.decode(certain), base.decoder(grid))
    assert base.decode(certain).shape == (1, 3, 256, 256)


# TiTok.


def test_titok_round_trip() -> None:
    titok = TiTok(SMALL_TITOK, pixel_channels=32).eval()
    codes = titok.encode(pictures(2))
    assert codes.shape == (2, 24)
    assert codes.dtype == torch.int64
    assert codes.unique().numel() > 1
    probabilities = titok.detokenize(codes)
    torch.testing.assert_close(probabilities.sum(1), torch.ones(2, 16, 16))
    pixels = titok.decode(codes)
    assert pixels.shape == (2, 3, 256, 256)
    assert 0 <= pixels.min() < pixels.max() <= 1


def test_titok_reads_latents_in_the_order_of_its_weights() -> None:
    """Without layers, the encoder is its norms, the reshape and the last projection."""
    encoder = TiTok(Shape(width=8, layers=0, heads=1, tokens=6), pixel_channels=32).encoder
    latents = torch.randn(6, 8)
    own = encoder.ln_post(encoder.ln_pre(latents + encoder.latent_token_positional_embedding))
    mixed = own.reshape(8, 6).T  # [6, 8], not `own`: that is how the public weights were trained
    expected = F.linear(mixed, encoder.conv_out.weight[:, :, 0, 0], encoder.conv_out.bias)
    torch.testing.assert_close(encoder(pictures(), latents)[0], expected)


def test_unknown_titok() -> None:
    with pytest.raises(ValueError, match="no TiTok 'S-64'; choose from S-128, B-64, L-32"):
        TiTok("S-64")


# ALIT.


def layerless_alit() -> ALIT:
    """Without layers, what is left is norms, embeddings and projections, which can be written out."""
    alit = ALIT(64, 0, 1, base=small_base(), halting=None).eval()
    for norm in alit.modules():
        if isinstance(norm, nn.LayerNorm):
            nn.init.normal_(norm.weight)
            nn.init.normal_(norm.bias)
    return alit


def test_alit_image_tokens_have_length_one_before_their_place_is_added() -> None:
    alit, pixels = layerless_alit(), pictures()
    parts = torch.cat([alit.base_latents(pixels), alit.patch_embed(pixels)], dim=1)[0].reshape(64, 256).T
    places = alit.encoder_positional_embedding
    expected = torch.cat([alit.encoder_class_embedding, parts / parts.norm(dim=1, keepdim=True)]) + places
    torch.testing.assert_close(alit.embed(pixels)[0], expected)


def test_alit_adds_the_same_tokens_with_another_step_every_time() -> None:
    alit, x = layerless_alit(), torch.randn(1, 257, 64)
    new = alit.latent_tokens + alit.latent_token_positional_embedding
    first = alit.encoder_ln_pre(torch.cat([x[0], new + alit.timestep_embedding[0]]))
    both = alit.encoder_ln_recursive(torch.cat([first, new + alit.timestep_embedding[1]]))
    for tokens, state in ((32, first), (64, both)):
        latents = alit.pre_quantizer_mlp(alit.encoder_ln_post(state[257:]))
        assert torch.equal(alit.allocate(x, tokens), alit.quantize.encode(latents[None]))


def test_alit_decoder_reads_its_answers_at_the_masks() -> None:
    alit = layerless_alit()
    masks = alit.decoder_mask_token[0] + alit.decoder_positional_embedding[1:]
    logits = alit.decoder.ffn(alit.decoder.ln_post(alit.decoder.ln_pre(masks)))
    probabilities = alit.detokenize(torch.randint(4096, (1, 64)))
    torch.testing.assert_close(probabilities[0], logits.softmax(-1))


def calls(module: nn.Module) -> list[int]:
    """A list that grows by the second dimension of the input at every call of a module."""
    seen: list[int] = []
    module.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape[1]))
    return seen


def test_alit_round_trip() -> None:
    alit = small_alit()
    for tokens in (32, 96, 256):
        codes = alit.encode(pictures(2), tokens)
        assert codes.shape == (2, tokens)
        assert codes.dtype == torch.int64
        assert 0 <= codes.min() < codes.max() < 4096
    torch.testing.assert_close(alit.detokenize(codes).sum(-1), torch.ones(2, 256))
    pixels = alit.decode(codes)
    assert pixels.shape == (2, 3, 256, 256)
    assert 0 <= pixels.min() < pixels.max() <= 1


def test_a_given_number_costs_its_roll_outs_and_no_decoder() -> None:
    alit = small_alit()
    rolled, decoded = calls(alit.encoder), calls(alit.decoder)
    alit.encode(pictures(), 96)
    assert rolled == [257 + 32, 257 + 64, 257 + 96]
    assert decoded == []


def test_a_roll_out_rewrites_the_tokens_before_it() -> None:
    alit = small_alit()
    x = alit.embed(pictures())
    short, long = alit.allocate(x, 32), alit.allocate(x, 64)
    assert not torch.equal(short, long[:, :32])


@pytest.mark.parametrize("tokens", [0, 16, 100, 288])
def test_numbers_that_alit_cannot_make(tokens: int) -> None:
    with pytest.raises(ValueError, match=f"not {tokens}; choose a multiple of 32"):
        small_alit().allocate(torch.zeros(1, 257, 64), tokens)


def test_threshold_search_stops_at_the_first_roll_out_below_it() -> None:
    alit, pixels = small_alit(), pictures()
    rolled, decoded, drawn = calls(alit.encoder), calls(alit.decoder), calls(alit.base.decoder)
    assert torch.equal(alit.encode_until(pixels, 10.0), alit.encode(pixels, 32))
    assert (decoded, len(drawn)) == ([32], 1)
    rolled.clear()
    assert torch.equal(alit.encode_until(pixels, 0.0), alit.encode(pixels, 256))
    assert (len(rolled), len(decoded), len(drawn)) == (8 + 8, 1 + 8, 1 + 8)


def test_the_released_code_draws_every_length_before_it_chooses() -> None:
    alit, pixels = small_alit(), pictures()
    rolled, decoded, drawn = calls(alit.encoder), calls(alit.decoder), calls(alit.base.decoder)
    assert alit.encode_as_released(pixels, 10.0).shape == (1, 32)
    assert (len(rolled), decoded, len(drawn)) == (8, list(range(32, 257, 32)), 8)


@pytest.mark.parametrize(
    ("threshold", "until", "released"),
    [(0.5, 32, 32), (0.25, 64, 64), (0.15, 128, 128), (0.05, 256, 128)],
)
def test_choice_of_a_length(
    monkeypatch: pytest.MonkeyPatch, threshold: float, until: int, released: int
) -> None:
    """Errors of 0.4, 0.2, 0.3, 0.1 and 0.3 from there: below 0.05 is none, and the fourth is the best."""
    alit, pixels = small_alit(), torch.zeros(1, 3, 256, 256)
    for encode, expected in ((alit.encode_until, until), (alit.encode_as_released, released)):
        errors = iter([0.4, 0.2, 0.3, 0.1, 0.3, 0.3, 0.3, 0.3])
        monkeypatch.setattr(alit, "base_decode", lambda _, e=errors: torch.full_like(pixels, next(e)))
        assert encode(pixels, threshold).shape == (1, expected)


def test_one_hard_image_lengthens_its_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    alit = small_alit()
    monkeypatch.setattr(alit, "base_decode", lambda p: torch.full((len(p), 3, 256, 256), 0.5))
    easy, hard = torch.full((1, 3, 256, 256), 0.5), torch.ones(1, 3, 256, 256)
    assert alit.encode_until(easy, 0.1).shape == (1, 32)
    assert alit.encode_until(torch.cat([easy, hard]), 0.1).shape == (2, 256)


def test_halting_masks_what_the_decoder_is_sure_of() -> None:
    alit = small_alit(halting=0.55)
    x, known = torch.randn(1, 257 + 32, 64), torch.zeros(1, 256, dtype=torch.int64)
    probabilities = torch.zeros(1, 256, 16)
    probabilities[0, :100, 0] = 1.0  # sure, so always masked
    probabilities[0, 100:, 0] = 0.5  # not sure enough, so never
    halted = alit._halt(x, probabilities, known)
    masks = alit.encoder_mask_token[0] + alit.encoder_positional_embedding[1:]
    torch.testing.assert_close(halted[0, 1:101], masks[:100])
    assert torch.equal(halted[:, 101:], x[:, 101:])
    assert torch.equal(halted[:, :1], x[:, :1])
    assert small_alit(halting=None)._halt(x, probabilities, known) is x
