"""`DoveModel.encode` and `decode`: early exit, a caller's control of lengths, independence of the batch."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch

import dove_ext
from dove_ext import DoveModel, DoveTokens, Query, TokensError
from dove_ext.models.generator import time_encodings
from dove_ext.tokens.lengths import lengths_for_budget
from tests.models.micro import SLOTS, linear, micro, photos, stop_at_share

# Rounding, as the sharp attention of the micro model amplifies it; a mistake shows at 0.1 and above.
TOLERANCE = {"rtol": 0.0, "atol": 1e-3}


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def model() -> DoveModel:
    return stop_at_share(micro())


def single_pass(model: DoveModel, threshold: float | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens [B, K, D] and lengths by the definition: all positions at once, cut where EOS wins."""
    with torch.no_grad():
        tokens, hidden, _ = model.generate(model.condition(photos(8).float() / 127.5 - 1))
        logits = model.generator.embed_out(hidden)
        stops = logits.argmax(-1) == model.config.eos_id
        if threshold is not None:
            stops = logits.softmax(-1)[..., model.config.eos_id] >= threshold
    first = [int(row.nonzero()[0]) if row.any() else SLOTS for row in stops]
    return tokens, torch.tensor([max(n, 1) for n in first], dtype=torch.int32)


@pytest.mark.parametrize("threshold", [None, 0.0, 0.05, 0.3, 1.0])
@pytest.mark.parametrize("block", [5, 32, 64, 1000])
def test_blocks_equal_single_pass(model: DoveModel, threshold: float | None, block: int) -> None:
    tokens, lengths = single_pass(model, threshold)
    if threshold is None:
        assert len(lengths.unique()) >= 5, "the lengths of this test should differ"
        assert lengths.max() == SLOTS, "one image should never stop"
    result = model.encode(photos(8), eos_threshold=threshold, block_size=block)
    assert result.lengths.tolist() == lengths.tolist()
    for ours, padded, length in zip(result.to_list(), tokens, lengths, strict=True):
        torch.testing.assert_close(ours, padded[:length], **TOLERANCE)


def test_one_token_is_kept_where_eos_comes_first() -> None:
    model = micro()
    model.generator.embed_out.bias.data[0] = 1e4
    assert model.encode(photos(2)).lengths.tolist() == [1, 1]
    for block in (4, 5, 64):  # which ran out before the ninth position, or with it
        tokens = model.encode(photos(2), min_tokens=9, block_size=block)
        assert tokens.lengths.tolist() == [9, 9]
        torch.testing.assert_close(tokens.tokens, model.encode(photos(2), num_tokens=9).tokens, **TOLERANCE)


def test_no_eos_means_all_positions() -> None:
    model = micro()
    model.generator.embed_out.bias.data[0] = -1e4
    assert model.encode(photos(2), block_size=10).lengths.tolist() == [SLOTS, SLOTS]


def test_num_tokens_is_exact(model: DoveModel) -> None:
    full = model.encode(photos(3), num_tokens=SLOTS)
    for count in (1, 5, SLOTS):
        tokens = model.encode(photos(3), num_tokens=count)
        assert tokens.lengths.tolist() == [count] * 3
        torch.testing.assert_close(tokens.tokens, full.truncate(count).tokens, **TOLERANCE)


def test_max_tokens_only_shortens(model: DoveModel) -> None:
    free = model.encode(photos(8))
    for limit in (1, 20, SLOTS):
        capped = model.encode(photos(8), max_tokens=limit, block_size=7)
        assert capped.lengths.tolist() == free.lengths.clamp(max=limit).tolist()
        torch.testing.assert_close(capped.tokens, free.truncate(limit).tokens, **TOLERANCE)
        whole = model.encode(photos(8), max_tokens=limit, return_p_eos=True)
        assert whole.lengths.tolist() == capped.lengths.tolist()
        assert whole.p_eos is not None and whole.p_eos.shape == (8, SLOTS)


@pytest.mark.parametrize("threshold", [None, 0.3])
def test_min_tokens_only_lengthens(model: DoveModel, threshold: float | None) -> None:
    """Whoever ended before has exactly so many, even where EOS does not win there."""
    free = model.encode(photos(8), eos_threshold=threshold)
    full = model.encode(photos(8), num_tokens=SLOTS)
    for least in (1, 9, 20, SLOTS):
        expected = free.lengths.clamp(min=least)
        for how in ({"block_size": 7}, {"return_p_eos": True}):
            tokens = model.encode(photos(8), min_tokens=least, eos_threshold=threshold, **how)
            assert tokens.lengths.tolist() == expected.tolist()
            torch.testing.assert_close(tokens.tokens, full.truncate(expected).tokens, **TOLERANCE)
    assert free.lengths.min() < 9, "some images of this test should be shorter"


def test_min_and_max_tokens_with_threshold(model: DoveModel) -> None:
    free = model.encode(photos(8), eos_threshold=0.3)
    for least, most in ((1, 10), (5, 10), (10, 10)):
        tokens = model.encode(photos(8), eos_threshold=0.3, min_tokens=least, max_tokens=most, block_size=3)
        assert tokens.lengths.tolist() == free.lengths.clamp(least, most).tolist()


def test_threshold_is_monotone(model: DoveModel) -> None:
    lengths = [model.encode(photos(8), eos_threshold=t).lengths for t in (0.0, 0.1, 0.5, 0.9, 1.0)]
    assert lengths[0].tolist() == [1] * 8  # every probability is at least 0
    assert all(bool((a <= b).all()) for a, b in pairwise(lengths))


def test_p_eos_is_the_softmax_entry(model: DoveModel) -> None:
    tokens = model.encode(photos(4), return_p_eos=True)
    p_eos = tokens.p_eos
    assert p_eos is not None and p_eos.dtype == torch.float32 and p_eos.shape == (4, SLOTS)
    assert 0 <= p_eos.min() < 0.5 < p_eos.max() <= 1
    # With a vocabulary of two, EOS wins where its probability is above a half.
    stops = [int((row > 0.5).nonzero()[0]) if (row > 0.5).any() else SLOTS for row in p_eos]
    assert tokens.lengths.tolist() == [max(s, 1) for s in stops]
    assert model.encode(photos(4)).p_eos is None


def test_numpy_integers_are_integers(model: DoveModel) -> None:
    for rule in ({"num_tokens": 7}, {"min_tokens": 7}, {"max_tokens": 7}, {"token_budget": 50}):
        ours = {name: np.int64(value) for name, value in rule.items()}
        assert torch.equal(model.encode(photos(2), **ours).tokens, model.encode(photos(2), **rule).tokens)
    assert len(model.encode(photos(2), batch_size=np.int32(1), block_size=np.int64(9))) == 2


def test_tokens_out_of_all_range_are_not_decoded_to_nan(model: DoveModel) -> None:
    tokens = model.encode(photos(2))
    wrong = DoveTokens.cat([tokens[:1], replace(tokens[1], tokens=tokens[1].tokens * 1e30)])
    with pytest.raises(TokensError, match="image 1 decodes to NaN: its tokens are too large"):
        model.decode(wrong)


def test_a_budget_above_the_own_lengths_goes_where_it_is_needed() -> None:
    """Where p_eos rounds to 1 in float32 as well, as behind the own lengths of a head with large weights."""
    model = linear(promised_psnr=16.0)
    head = model.generator.embed_out
    with torch.no_grad():
        head.weight.zero_(), head.bias.zero_()
        head.weight[model.config.eos_id, -1] = 10  # log-odds of 10 for each dB above the promise
    images = photos(8)
    tokens = model.encode(images, return_p_eos=True)
    assert tokens.p_eos is not None
    budget = int(tokens.lengths.sum()) + 60
    certain = (tokens.p_eos == 1).int().argmax(1)
    shared = model.encode(images, token_budget=budget, batch_size=3)
    assert len(shared.tokens) == budget and (shared.lengths > certain).any()
    condition = model.condition(images.float() / 127.5 - 1)
    assert condition.quality is not None and condition.margin is not None
    above = condition.quality - condition.margin[:, None]  # dB with 1, 2, ... tokens
    rows = list(zip(above.tolist(), shared.lengths.tolist(), strict=True))
    assert sum(1 < n < SLOTS for _, n in rows) > 1
    assert max(row[n - 2] for row, n in rows if n > 1) <= min(row[n - 1] for row, n in rows if n < SLOTS)


def test_token_budget(model: DoveModel) -> None:
    images = photos(8)
    p_eos = model.encode(images, return_p_eos=True).p_eos
    assert p_eos is not None
    for budget in (8, 100, 333, 8 * SLOTS):
        tokens = model.encode(images, token_budget=budget, batch_size=3)
        assert int(tokens.lengths.sum()) == tokens.tokens.shape[0] == budget
        assert tokens.lengths.tolist() == lengths_for_budget(p_eos, budget).tolist()
    tokens = model.encode(images, token_budget=100, min_tokens=9, batch_size=3)
    assert tokens.lengths.tolist() == lengths_for_budget(p_eos, 100, 9).tolist()
    assert int(tokens.lengths.min()) == 9 > int(lengths_for_budget(p_eos, 100).min())
    full = model.encode(images, num_tokens=SLOTS)
    tokens = model.encode(images, token_budget=100)
    torch.testing.assert_close(tokens.tokens, full.truncate(tokens.lengths).tokens, **TOLERANCE)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"num_tokens": 0}, "num_tokens must be between 1 and 64, got 0"),
        ({"num_tokens": 65}, "num_tokens must be between 1 and 64, got 65"),
        ({"min_tokens": 0}, "min_tokens must be between 1 and 64, got 0"),
        ({"min_tokens": 65}, "min_tokens must be between 1 and 64, got 65"),
        ({"min_tokens": 9, "max_tokens": 8}, "min_tokens must be at most max_tokens, 8, got 9"),
        (
            {"num_tokens": 5, "min_tokens": 2},
            "num_tokens decides the lengths; it cannot be combined with min_tokens",
        ),
        (
            {"token_budget": 17, "min_tokens": 9},
            "token_budget must be between 9 and 64 tokens an image (18..128 for 2 images), got 17",
        ),
        ({"max_tokens": -1}, "max_tokens must be between 1 and 64, got -1"),
        ({"eos_threshold": 1.5}, "eos_threshold must be between 0 and 1, got 1.5"),
        ({"eos_threshold": float("nan")}, "eos_threshold must be between 0 and 1, got nan"),
        (
            {"num_tokens": 5, "max_tokens": 9},
            "num_tokens decides the lengths; it cannot be combined with max_tokens",
        ),
        (
            {"num_tokens": 5, "max_tokens": 9, "eos_threshold": 0.5},
            "num_tokens decides the lengths; it cannot be combined with max_tokens or eos_threshold",
        ),
        (
            {"token_budget": 50, "eos_threshold": 0.5},
            "token_budget decides the lengths; it cannot be combined with eos_threshold",
        ),
        (
            {"num_tokens": 5, "token_budget": 50},
            "num_tokens decides the lengths; it cannot be combined with token_budget",
        ),
        (
            {"token_budget": 1},
            "token_budget must be between 1 and 64 tokens an image (2..128 for 2 images), got 1",
        ),
        (
            {"token_budget": 129},
            "token_budget must be between 1 and 64 tokens an image (2..128 for 2 images), got 129",
        ),
        ({"target_psnr": 0}, "target_psnr must be above 0 and at most 100 dB, got 0"),
        ({"target_psnr": 101}, "target_psnr must be above 0 and at most 100 dB, got 101"),
        ({"target_psnr": float("nan")}, "target_psnr must be above 0 and at most 100 dB, got nan"),
        (
            {"target_psnr": 30, "num_tokens": 5},
            "num_tokens decides the lengths; it cannot be combined with target_psnr",
        ),
        (
            {"target_psnr": 30, "token_budget": 50},
            "token_budget decides the lengths; it cannot be combined with target_psnr",
        ),
        (
            {"target_psnr": 30, "eos_threshold": 0.5},
            "eos_threshold decides the lengths; it cannot be combined with target_psnr",
        ),
        ({"batch_size": 0}, "batch_size and block_size must be at least 1, got 0 and 64"),
        ({"block_size": -2}, "batch_size and block_size must be at least 1, got 32 and -2"),
        ({"query": Query(torch.zeros(3, 1, 64))}, "query has 3 rows for 2 images; give one row an image"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_contradictions(model: DoveModel, arguments: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError) as caught:
        model.encode(photos(2), **arguments)
    assert str(caught.value) == sentence


def test_an_image_does_not_depend_on_its_batch(model: DoveModel) -> None:
    together = model.encode(photos(8))
    for batch_size in (1, 3):
        parts = model.encode(photos(8), batch_size=batch_size)
        assert parts.lengths.tolist() == together.lengths.tolist()
        torch.testing.assert_close(parts.tokens, together.tokens, **TOLERANCE)
    reversed_ = model.encode(photos(8).flip(0))
    torch.testing.assert_close(reversed_[list(range(7, -1, -1))].tokens, together.tokens, **TOLERANCE)
    alone = [model.decode(part) for part in together]
    torch.testing.assert_close(torch.cat(alone), model.decode(together, batch_size=5), **TOLERANCE)


def test_an_image_does_not_depend_on_threads(model: DoveModel) -> None:
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            tokens = model.encode(photos(4))
            results.append((tokens.lengths.tolist(), tokens.tokens, model.decode(tokens)))
    finally:
        torch.set_num_threads(threads)
    for lengths, tokens, images in results[1:]:
        assert lengths == results[0][0]
        torch.testing.assert_close(tokens, results[0][1], **TOLERANCE)
        torch.testing.assert_close(images, results[0][2], **TOLERANCE)


def test_backends_agree(model: DoveModel) -> None:
    ours = model.encode(photos(4))
    previous = dove_ext.set_backend("torch")
    try:
        plain = model.encode(photos(4))
        pixels = model.decode(ours)
    finally:
        dove_ext.set_backend(previous)
    assert plain.lengths.tolist() == ours.lengths.tolist()
    torch.testing.assert_close(plain.tokens, ours.tokens, **TOLERANCE)
    torch.testing.assert_close(pixels, model.decode(ours), **TOLERANCE)


def test_kinds_of_input_give_the_same_tokens(model: DoveModel) -> None:
    images = photos(2)
    expected = model.encode(images)
    array = np.ascontiguousarray(images.permute(0, 2, 3, 1).numpy())
    for other in (list(images), images.float() / 255, array, list(array)):
        torch.testing.assert_close(model.encode(other).tokens, expected.tokens, **TOLERANCE)


def test_result_describes_itself(model: DoveModel) -> None:
    tokens = model.encode(photos(2))
    assert isinstance(tokens, DoveTokens)
    assert (tokens.num_slots, tokens.width, tokens.model) == (SLOTS, 64, "micro")
    images = model.decode(tokens)
    assert images.shape == (2, 3, 32, 32) and images.dtype == torch.float32 and images.is_contiguous()
    assert images.min() >= 0 and images.max() <= 1
    again, same = model.reconstruct(photos(2))
    torch.testing.assert_close(again, images)
    assert same.lengths.tolist() == tokens.lengths.tolist()


def test_others_may_train_on_the_results(model: DoveModel) -> None:
    images, tokens = model.reconstruct(photos(2))
    assert not images.requires_grad and not tokens.tokens.requires_grad
    probe = torch.nn.Linear(64, 3)
    (probe(tokens.tokens).sum() + probe(images.flatten()[:64]).sum()).backward()
    assert probe.weight.grad is not None and probe.weight.grad.any()


def test_decode_reads_only_what_is_kept(model: DoveModel) -> None:
    """The padding of `render` may hold anything."""
    with torch.no_grad():
        tokens = model.generate(model.condition(photos(2).float() / 127.5 - 1)).tokens
        lengths = torch.tensor([3, 40], dtype=torch.int32)
        clean = model.render(tokens, lengths)
        tokens[0, 3:], tokens[1, 40:] = float("nan"), float("inf")
        torch.testing.assert_close(model.render(tokens, lengths), clean, rtol=0, atol=0)


def test_empty_tokens_decode_to_no_images(model: DoveModel) -> None:
    empty = model.encode(photos(2))[[]]
    assert model.decode(empty).shape == (0, 3, 32, 32)


@pytest.mark.parametrize("training", [True, False])
def test_encode_leaves_the_mode_alone(model: DoveModel, training: bool) -> None:
    model.train(training)
    model.generator.eval()
    modes = [module.training for module in model.modules()]
    model.reconstruct(photos(1))
    assert [module.training for module in model.modules()] == modes
    with pytest.raises(dove_ext.ImageError):
        model.encode(torch.full((1, 3, 32, 32), float("nan")))
    assert [module.training for module in model.modules()] == modes
    model.eval()


def test_time_encodings() -> None:
    times = time_encodings(5, 8)
    assert times.shape == (5, 8) and times.dtype == torch.float32
    for i in range(5):
        for j in range(4):
            angle = i / 10000 ** (2 * j / 8)
            assert times[i, 2 * j].item() == pytest.approx(np.sin(angle), abs=1e-6)
            assert times[i, 2 * j + 1].item() == pytest.approx(np.cos(angle), abs=1e-6)


def test_features_are_the_hidden_states_of_the_images_positions(model: DoveModel) -> None:
    layers: list[torch.Tensor] = []
    hook = model.generator.stack.layers[0].register_forward_hook(lambda _, __, out: layers.append(out))
    with torch.no_grad():
        model.generate(model.condition(photos(5).float() / 127.5 - 1))
    hook.remove()
    positions = model.config.grid**2
    features = model.features(photos(5), batch_size=2)  # two layers: behind the first
    assert features.shape == (5, positions, model.config.generator.hidden)
    torch.testing.assert_close(features, layers[0][:, :positions], **TOLERANCE)
    assert not torch.allclose(model.features(photos(5), layer=0), features)
    with pytest.raises(ValueError, match="layer must be between 0 and 2, got 3"):
        model.features(photos(1), layer=3)
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        model.features(photos(1), batch_size=0)


def test_parameters_as_one_vector() -> None:
    """With the call that the documentation of `DoveModel` names; a round trip changes no token."""
    model = micro()
    expected = model.encode(photos(2))
    model.to(memory_format=torch.contiguous_format)
    vector = torch.nn.utils.parameters_to_vector(model.parameters())
    assert vector.shape == (sum(p.numel() for p in model.parameters()),)
    other = micro()
    torch.nn.utils.vector_to_parameters(2 * vector.detach(), other.parameters())
    torch.nn.utils.vector_to_parameters(vector.detach(), other.parameters())
    for same in (model, other):
        assert torch.equal(same.encode(photos(2)).tokens, expected.tokens)
