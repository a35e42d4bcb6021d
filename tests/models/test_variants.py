"""What a configuration can change: queries, attention, Gaussian tokens, heads."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from dove_ext.models.dove import DoveModel
from dove_ext.models.query import Query
from tests.models.micro import SLOTS, micro, photos, pixels, stop_at_share

pytestmark = pytest.mark.usefixtures("one_thread")
TOLERANCE = {"rtol": 0.0, "atol": 1e-3}  # see test_encode.py


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
        hidden = generator(model.condition_on(latents, Query(query)))
    torch.testing.assert_close(hidden, whole[:, -SLOTS:], rtol=0, atol=1e-5)
    torch.testing.assert_close(whole[:, :SLOTS], plain[:, :SLOTS], **TOLERANCE)
    assert (hidden - plain[:, -SLOTS:]).abs().max() > 0.1


def test_query_in_blocks_equals_single_pass() -> None:
    model = stop_at_share(micro())
    query = Query(torch.randn(4, 5, 64))
    with torch.no_grad():
        tokens = model.generate(model.condition(pixels(4), query)).tokens
    for block in (6, 64):
        result = model.encode(photos(4), query=query, block_size=block, batch_size=3)
        for ours, row in zip(result.to_list(), tokens, strict=True):
            torch.testing.assert_close(ours, row[: len(ours)], **TOLERANCE)
    one = model.encode(photos(4)[2:3], query=query.rows(slice(2, 3)))
    torch.testing.assert_close(one.tokens, result[2].tokens, **TOLERANCE)


def test_query_ids() -> None:
    model = micro(query_vocab_size=10, query_length=3)
    ids = torch.tensor([[1, 9], [3, 3]])
    embedded = model.generator.embed_in(ids).detach()
    by_id, by_embedding = (model.encode(photos(2), num_tokens=9, query=Query(q)) for q in (ids, embedded))
    torch.testing.assert_close(by_id.tokens, by_embedding.tokens)
    sentence = r"embeds no query ids \(query_vocab_size is 0\); pass embeddings"
    with pytest.raises(ValueError, match=sentence):
        micro().encode(photos(2), query=Query(ids))
    with pytest.raises(ValueError, match=sentence):
        micro().generate(micro().condition(pixels(2), Query(ids)))


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
    query = Query(torch.randn(2, 4, 64))
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
    tokens = model.encode(photos(2), return_p_eos=True)
    assert tokens.p_eos is not None and tokens.p_eos.mean().item() == pytest.approx(0.02, rel=0.2)
    assert tokens.lengths.tolist() == [SLOTS, SLOTS]  # another word wins everywhere
