"""What a configuration can change: queries, attention, Gaussian tokens, the linear shortcut, heads."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from dove_ext.models.dove import DoveModel
from dove_ext.models.shortcut import FrequencyShortcut, dct_basis
from tests.models.micro import SLOTS, micro, photos, stop_at_share

pytestmark = pytest.mark.usefixtures("one_thread")
TOLERANCE = {"rtol": 0.0, "atol": 1e-3}  # see test_encode.py


def pixels(count: int) -> Tensor:
    return photos(count).float() / 127.5 - 1


# --- Queries ------------------------------------------------------------------------------------------


def test_query_stands_between_image_and_times() -> None:
    """The result is the stack's over [H_v ; query ; t], and H_v's own results do not see the query."""
    model = micro()
    generator = model.generator
    query = torch.randn(2, 3, 64)
    with torch.no_grad():
        latents = model.vqgan.encode(pixels(2))
        image = generator.from_latent(latents)
        times = generator.times.expand(2, -1, -1)
        whole = generator.stack(torch.cat([image, query, times], dim=1), prefix=0)
        plain = generator.stack(torch.cat([image, times], dim=1), prefix=0)
        hidden = generator(model.condition_on(latents, query))
    torch.testing.assert_close(hidden, whole[:, -SLOTS:], rtol=0, atol=1e-5)
    torch.testing.assert_close(whole[:, :SLOTS], plain[:, :SLOTS], **TOLERANCE)
    assert (hidden - plain[:, -SLOTS:]).abs().max() > 0.1


def test_query_in_blocks_equals_single_pass() -> None:
    model = stop_at_share(micro())
    query = torch.randn(4, 5, 64)
    with torch.no_grad():
        tokens = model.generate(model.condition(pixels(4), query)).tokens
    for block in (6, 64):
        result = model.encode(photos(4), query=query, block_size=block, batch_size=3)
        for ours, row in zip(result.to_list(), tokens, strict=True):
            torch.testing.assert_close(ours, row[: len(ours)], **TOLERANCE)
    one = model.encode(photos(4)[2:3], query=query[2:3])
    torch.testing.assert_close(one.tokens, result[2].tokens, **TOLERANCE)


def test_query_ids() -> None:
    model = micro(query_vocab_size=10)
    ids = torch.tensor([[1, 9], [3, 3]])
    embedded = model.generator.embed_in(ids).detach()
    by_id, by_embedding = (model.encode(photos(2), num_tokens=9, query=q) for q in (ids, embedded))
    torch.testing.assert_close(by_id.tokens, by_embedding.tokens)
    with pytest.raises(ValueError, match=r"embeds no query ids \(query_vocab_size is 0\); pass embeddings"):
        micro().encode(photos(2), query=ids)


# --- Attention ----------------------------------------------------------------------------------------


def reach(run: Callable[[Tensor], Tensor], x: Tensor, position: int) -> list[int]:
    """Positions of `run`'s result that a change of `x` at `position` moves."""
    changed = x.clone()
    changed[:, position] = torch.randn(x.shape[-1])
    with torch.no_grad():
        moved = (run(changed) - run(x)).abs().amax(-1)[0] > 1e-6
    return moved.nonzero().flatten().tolist()


@pytest.mark.parametrize(("attention", "prefix"), [("causal", 0), ("bidirectional", SLOTS)])
def test_prefix_attention(attention: str, prefix: int) -> None:
    model = stop_at_share(micro(prefix_attention=attention))
    stack = model.generator.stack
    assert model.generator.prefix == prefix
    x = torch.randn(1, 2 * SLOTS, 64)
    first_seen = 0 if prefix else 20
    assert reach(lambda x: stack(x, prefix=prefix), x, 20) == list(range(first_seen, 2 * SLOTS))
    assert reach(lambda x: stack(x, prefix=prefix), x, SLOTS + 3) == list(range(SLOTS + 3, 2 * SLOTS))
    with torch.no_grad():
        tokens = model.generate(model.condition(pixels(4))).tokens
    result = model.encode(photos(4), block_size=9)
    for ours, row in zip(result.to_list(), tokens, strict=True):
        torch.testing.assert_close(ours, row[: len(ours)], **TOLERANCE)


def test_bidirectional_prefix_with_query() -> None:
    """Only H_v's positions see one another; the query stays causal."""
    model = stop_at_share(micro(prefix_attention="bidirectional"))
    query = torch.randn(2, 4, 64)
    with torch.no_grad():
        tokens = model.generate(model.condition(pixels(2), query)).tokens
    result = model.encode(photos(2), query=query, block_size=16)
    for ours, row in zip(result.to_list(), tokens, strict=True):
        torch.testing.assert_close(ours, row[: len(ours)], **TOLERANCE)


@pytest.mark.parametrize("attend", [True, False])
def test_attend_padding(attend: bool) -> None:
    decoder = micro(attend_padding=attend).token_decoder
    tokens = torch.zeros(1, SLOTS, 64)
    tokens[:, :10] = torch.randn(1, 10, 64)
    lengths = torch.tensor([10], dtype=torch.int32)
    everywhere = list(range(SLOTS))
    assert reach(lambda x: decoder(x, lengths), tokens, 4) == everywhere
    # A change behind the length shows only where padding is attended to (or at its own slot).
    assert reach(lambda x: decoder(x, lengths), tokens, 30) == (everywhere if attend else [30])


# --- Gaussian tokens ----------------------------------------------------------------------------------


def test_gaussian_samples_in_training_only() -> None:
    model = micro(gaussian=True)
    generator = model.generator
    torch.nn.init.normal_(generator.log_variance.weight, std=0.02)
    hidden = torch.randn(1, SLOTS, 64)
    condition = model.condition(pixels(1))
    with torch.no_grad():
        mean = generator.tokens(hidden, condition)
        torch.testing.assert_close(mean, generator.mean(hidden))
        draws = torch.stack([generator.tokens(hidden, condition, sample=True) for _ in range(400)])
        spread = (0.5 * generator.log_variance(hidden)).exp()
        assert ((draws.mean(0) - mean) / spread * 20).std().item() == pytest.approx(1, abs=0.1)
        assert (draws.std(0) / spread).mean().item() == pytest.approx(1, abs=0.02)
        model.train()
        assert not torch.equal(model.generate(condition).tokens, model.generate(condition).tokens)
        model.eval()
        assert torch.equal(model.generate(condition).tokens, model.generate(condition).tokens)
    assert torch.equal(model.train().encode(photos(1)).tokens, model.encode(photos(1)).tokens)


# --- The linear shortcut ------------------------------------------------------------------------------


def test_dct_basis_is_orthonormal() -> None:
    basis = dct_basis(8)
    torch.testing.assert_close(basis @ basis.T, torch.eye(64), rtol=0, atol=1e-5)
    torch.testing.assert_close(basis[0], torch.full((64,), 1 / 8))


def arranged(kept_slots: int = 64) -> FrequencyShortcut:
    shortcut = FrequencyShortcut(grid=8, latent_channels=16, num_tokens=kept_slots, token_width=8)
    generator = torch.Generator().manual_seed(5)
    count = shortcut.coefficients
    shortcut.arrange(torch.rand(count, generator=generator) + 0.1, torch.rand(count, generator=generator))
    return shortcut


@torch.no_grad()
def test_shortcut_inverts_kept_coefficients() -> None:
    shortcut = arranged()
    assert shortcut.kept == 64 * 8 < shortcut.coefficients == 1024
    tokens = torch.randn(2, 64, 8)
    torch.testing.assert_close(shortcut.tokens(shortcut.latents(tokens)), tokens, rtol=0, atol=1e-4)
    latents = torch.randn(2, 64, 16)
    once = shortcut.latents(shortcut.tokens(latents))
    torch.testing.assert_close(shortcut.latents(shortcut.tokens(once)), once, rtol=0, atol=1e-4)
    # What is lost is exactly the energy of the coefficients that are not kept.
    coefficients = shortcut.transform(latents)
    coefficients[:, shortcut.order.long()] = 0
    torch.testing.assert_close((latents - once).pow(2).sum(), coefficients.pow(2).sum(), rtol=1e-4, atol=0)


@torch.no_grad()
def test_shortcut_with_room_for_all_is_the_identity() -> None:
    shortcut = FrequencyShortcut(grid=8, latent_channels=16, num_tokens=64, token_width=32)
    assert shortcut.kept == shortcut.coefficients
    latents = torch.randn(1, 64, 16)
    tokens = shortcut.tokens(latents)
    assert tokens.shape == (1, 64, 32)
    assert not tokens.flatten(1)[:, shortcut.kept :].any()
    torch.testing.assert_close(shortcut.latents(tokens), latents, rtol=0, atol=1e-5)


def test_arrange_orders_by_worth() -> None:
    shortcut = FrequencyShortcut(grid=2, latent_channels=2, num_tokens=4, token_width=1)
    variance = torch.tensor([1.0, 4.0, 9.0, 1.0, 1.0, 16.0, 0.0, 1.0])
    worth = torch.tensor([1.0, 1.0, 0.1, 5.0, 1.0, 1.0, 99.0, 0.5])
    shortcut.arrange(variance, worth)
    assert shortcut.order.tolist() == [5, 3, 1, 0]  # worth 16, 5, 4, 1; ties: the lower first
    assert shortcut.scale.tolist() == [4.0, 1.0, 2.0, 1.0]
    total = float((variance * worth).sum())
    left = [total, total - 16, total - 21, total - 25, total - 26]
    assert shortcut.missing.tolist() == pytest.approx([(x / total) ** 0.5 for x in left], abs=1e-6)


def test_expected_error_follows_the_last_kept_tokens() -> None:
    shortcut = FrequencyShortcut(grid=4, latent_channels=2, num_tokens=16, token_width=2)
    shortcut.missing.copy_(torch.linspace(1, 0, 17))
    tokens = torch.ones(3, 16, 2)
    tokens[1] *= 0.5  # half as much in every coefficient: half as much is missing
    tokens[2, :7] = 9.0  # of 8 kept tokens only the last counts
    tokens[:, 8:] = 0
    expected = shortcut.expected_error(tokens, torch.tensor([8, 8, 8], dtype=torch.int32))
    assert expected.tolist() == pytest.approx([0.5, 0.25, 0.5])
    alone = shortcut.expected_error(tokens, torch.tensor([1, 1, 1], dtype=torch.int32))
    assert alone.tolist() == pytest.approx([15 / 16, 15 / 32, 9 * 15 / 16])


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
    shortcut = FrequencyShortcut(grid=4, latent_channels=3, num_tokens=16, token_width=3)
    frequency = shortcut.order.long() // 3
    radius = (frequency // 4) ** 2 + (frequency % 4) ** 2
    assert (radius.diff() >= 0).all() and frequency[:3].tolist() == [0, 0, 0]


def test_shortcut_model_starts_as_its_linear_code() -> None:
    torch.manual_seed(0)
    model = DoveModel(micro(shortcut=True).config).eval()
    with torch.no_grad():
        latents = model.vqgan.encode(pixels(2))
        tokens = model.generate(model.condition(pixels(2))).tokens
        torch.testing.assert_close(tokens, model.shortcut.tokens(latents))
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


# --- Vocabulary heads ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("vocab", "eos", "bias"), [(2, 0, True), (2, 1, True), (50304, 0, True), (50304, 7, False)]
)
def test_heads(vocab: int, eos: int, bias: bool) -> None:
    model = micro(vocab_size=vocab, eos_id=eos, head_bias=bias)
    head = model.generator.embed_out
    assert head.weight.shape == (vocab, 64) and (head.bias is not None) == bias
    with torch.no_grad():
        if bias:
            stop_at_share(model)
        else:
            head.weight[eos] *= 12
        hidden = model.generate(model.condition(pixels(4))).hidden
        logits = head(hidden)
    wins = logits.argmax(-1) == eos
    assert wins.any() and not wins.all()
    expected = [max(1, int(row.nonzero()[0])) if row.any() else SLOTS for row in wins]
    assert model.encode(photos(4), block_size=20).lengths.tolist() == expected
    p_eos = model.encode(photos(4), return_p_eos=True).p_eos
    torch.testing.assert_close(p_eos, logits.softmax(-1)[..., eos], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("vocab", [2, 50304])
def test_new_head_starts_at_its_prior(vocab: int) -> None:
    torch.manual_seed(0)
    model = DoveModel(micro(vocab_size=vocab, eos_prior=0.02).config)
    p_eos = model.encode(photos(2), return_p_eos=True).p_eos
    assert p_eos is not None and p_eos.mean().item() == pytest.approx(0.02, rel=0.2)
