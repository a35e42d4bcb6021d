"""Text queries: of several lengths in one batch, over a prefix, and refused where they cannot be used."""

from __future__ import annotations

import copy
import pickle
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dove_ext import CheckpointError, DoveModel, DoveTokens, ImageError, Prefix, Query, QueryError
from dove_ext.models.query import at_times, followed
from dove_ext.tokens.lengths import LengthRule
from tests.conftest import import_or_skip
from tests.models.micro import asked, linear, micro, photos, pixels, stop_at_share, words

import_or_skip("tokenizers")

pytestmark = pytest.mark.usefixtures("one_thread")
TOLERANCE = {"rtol": 0.0, "atol": 1e-3}  # see test_encode.py
QUERIES = ["the dog", None, "table?", "null"]  # of different numbers of ids
RULES: list[dict[str, Any]] = [
    {}, {"num_tokens": 7}, {"min_tokens": 20}, {"max_tokens": 20}, {"eos_threshold": 0.3},
    {"token_budget": 99}, {"target_psnr": 9.0}, {"return_p_eos": True},
]  # fmt: skip


@pytest.fixture(scope="module", params=["causal", "bidirectional"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> DoveModel:
    return stop_at_share(asked(tmp_path_factory.mktemp("model"), prefix_attention=request.param))


def same(actual: DoveTokens, expected: DoveTokens) -> None:
    assert actual.lengths.tolist() == expected.lengths.tolist()
    torch.testing.assert_close(actual.tokens, expected.tokens, **TOLERANCE)
    for ours, theirs in ((actual.p_eos, expected.p_eos), (actual.psnr, expected.psnr)):
        assert (ours is None) == (theirs is None)
        if ours is not None:
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-2)


# --- What a query does --------------------------------------------------------------------------------


def test_tokens_depend_on_the_query(model: DoveModel) -> None:
    tokens = [model.encode(photos(2), query=query, num_tokens=5).tokens for query in ("the dog", "table?")]
    assert (tokens[0] - tokens[1]).abs().max() > 0.1


def test_no_query_is_the_null_query(model: DoveModel) -> None:
    expected = model.encode(photos(2), query="null")
    for query in (None, [None, "null"], ("null", None)):
        assert torch.equal(model.encode(photos(2), query=query).tokens, expected.tokens)
    ids = model.queries("null", 2)
    assert ids is not None and ids.values.shape[1] < 4, "null should be one of the tokenizer's pieces"
    with torch.no_grad():
        by_hand = model.generate(model.condition(pixels(2), ids)).tokens
        torch.testing.assert_close(model.generate(model.condition(pixels(2))).tokens, by_hand)
    assert model.reconstruct(photos(2))[1].lengths.tolist() == expected.lengths.tolist()


def test_any_unicode_is_text(model: DoveModel) -> None:
    for query in ("Hündin", "犬", "🐕", "<|end"):
        assert len(model.encode(photos(1), query=query)) == 1


# --- Queries of several lengths -----------------------------------------------------------------------


def alone(model: DoveModel, rule: dict[str, Any]) -> list[DoveTokens]:
    pictures = photos(len(QUERIES))
    return [model.encode(pictures[i : i + 1], query=q, **rule) for i, q in enumerate(QUERIES)]


@pytest.mark.parametrize("block", [5, 64])
@pytest.mark.parametrize("rule", [rule for rule in RULES if "token_budget" not in rule], ids=str)
def test_unequal_lengths_equal_alone(model: DoveModel, rule: dict[str, Any], block: int) -> None:
    ids = model.queries(QUERIES, len(QUERIES))
    assert ids is not None and ids.lengths is not None and len(ids.lengths.unique()) == 3
    together = model.encode(photos(len(QUERIES)), query=QUERIES, block_size=block, **rule)
    same(together, DoveTokens.cat(alone(model, rule)))


@pytest.mark.parametrize("batch_size", [1, 3])
def test_batches_change_nothing(model: DoveModel, batch_size: int) -> None:
    expected = model.encode(photos(4), query=QUERIES)
    same(model.encode(photos(4), query=QUERIES, batch_size=batch_size), expected)
    backwards = model.encode(photos(4).flip(0), query=QUERIES[::-1], batch_size=batch_size)
    same(backwards[[3, 2, 1, 0]], expected)


def test_padding_of_a_query_is_read_by_nobody(model: DoveModel) -> None:
    ids = model.queries(QUERIES, 4)
    assert ids is not None and ids.lengths is not None
    expected = model.encode(photos(4), query=ids)
    assert model.generator.embed_in is not None
    values = model.generator.embed_in(ids.values).detach()
    for i, length in enumerate(ids.lengths.tolist()):
        values[i, length:] = float("nan")
    same(model.encode(photos(4), query=Query(values, ids.lengths)), expected)
    rule = LengthRule(num_tokens=9)
    padded = Query(values, ids.lengths).padded(11)
    tokens, _, _ = model.encode_at_once(pixels(4), padded, rule=rule)
    torch.testing.assert_close(tokens.flatten(0, 1), model.encode(photos(4), query=ids, num_tokens=9).tokens,
                               **TOLERANCE)  # fmt: skip


def test_times_stand_behind_each_query() -> None:
    query, times = torch.arange(6.0).view(2, 3, 1), 10 + torch.arange(4.0).view(2, 2, 1)
    lengths = torch.tensor([3, 1], dtype=torch.int32)
    rows = followed(query, lengths, times)
    assert rows[..., 0].tolist() == [[0, 1, 2, 10, 11], [3, 12, 13, 13, 13]]
    assert torch.equal(at_times(rows, Query(query, lengths), 2), times)


@pytest.mark.parametrize("shortcut", [False, True])
def test_gradients_reach_the_query_alone_and_together(tmp_path: Path, shortcut: bool) -> None:
    model = asked(tmp_path, shortcut=shortcut)
    ids = model.queries(QUERIES, 4)
    assert ids is not None and model.generator.embed_in is not None
    weight = model.generator.embed_in.weight

    def gradient(images: Tensor, query: Query) -> Tensor:
        hidden = model.generator(model.condition(images, query), 6)
        probe = torch.linspace(-1, 1, 6 * 64).view(6, 64).sin()
        return torch.autograd.grad((hidden[..., :64] * probe).sum(), weight)[0]

    together = gradient(pixels(4), ids)
    parts = sum(gradient(pixels(4)[i : i + 1], ids.rows(slice(i, i + 1))) for i in range(4))
    assert (together - parts).norm() < 1e-3 * together.norm() > 0


def test_features_are_aligned_beside_a_query(model: DoveModel) -> None:
    """Hidden states of the image and of the time positions in one pass, with queries of several lengths."""
    with torch.no_grad():
        condition = model.condition(pixels(4), model.queries(QUERIES, 4))
        states, hidden = model.generator.image_states_and_forward(condition, 6)
        torch.testing.assert_close(hidden, model.generator(condition, 6), **TOLERANCE)
        torch.testing.assert_close(states, model.generator.image_states(condition.latents, 1), **TOLERANCE)


# --- A prefix for many queries ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("query", "rule"), [("the dog", {}), (None, {}), *((QUERIES, rule) for rule in RULES)], ids=str
)
def test_prefix_equals_anew(model: DoveModel, query: Any, rule: dict[str, Any]) -> None:
    seen = model.prefix(photos(4), batch_size=3)
    assert isinstance(seen, Prefix) and len(seen) == 4
    expected = model.encode(photos(4), query=query, block_size=9, **rule)
    for _ in range(2):  # nothing of it is used up
        same(model.encode(seen, query=query, block_size=9, batch_size=2, **rule), expected)


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_prefix_of_a_model_without_queries(rule: dict[str, Any]) -> None:
    model = stop_at_share(linear(semantic_width=8))
    rule = {**rule, **({"target_psnr": 20.0} if "target_psnr" in rule else {})}
    same(model.encode(model.prefix(photos(4)), **rule), model.encode(photos(4), **rule))


def test_images_of_a_prefix_are_chosen(model: DoveModel) -> None:
    seen = model.prefix(photos(4))
    same(model.encode(seen[[2, 2, 0]], query=["the dog", None, "table?"]),
         model.encode(photos(4)[[2, 2, 0]], query=["the dog", None, "table?"]))  # fmt: skip
    same(model.encode(seen[1:3]), model.encode(photos(4)[1:3]))
    assert [len(part) for part in seen] == [1] * 4
    assert len(seen[torch.tensor([True, False, False, True])]) == 2
    with pytest.raises(IndexError, match="there is no image 4 among 4"):
        seen[4]
    assert torch.equal(seen.to("cpu").condition.latents, seen.condition.latents)


def test_a_prefix_leaves_encoder_and_image_positions_alone(model: DoveModel) -> None:
    seen, places = model.prefix(photos(2)), []
    hooks = [
        model.generator.stack.layers[0].register_forward_hook(lambda _, x, __: places.append(x[0].shape[1])),
        model.vqgan.register_forward_pre_hook(lambda *_: pytest.fail("the encoder ran")),
    ]
    encode, model.vqgan.encode = model.vqgan.encode, lambda _: pytest.fail("the encoder ran")  # type: ignore
    try:
        model.encode(seen, query="null", num_tokens=9)
    finally:
        del model.vqgan.encode
        for hook in hooks:
            hook.remove()
    assert model.vqgan.encode.__func__ is encode.__func__
    assert places == [9 + model.queries("null", 1).values.shape[1]]  # type: ignore[union-attr]


@pytest.mark.parametrize("make, encode", [(True, True), (True, False), (False, True)])
def test_a_prefix_under_autocast(model: DoveModel, make: bool, encode: bool) -> None:
    with torch.autocast("cpu", torch.bfloat16, enabled=make):
        seen = model.prefix(photos(2))
    with torch.autocast("cpu", torch.bfloat16, enabled=encode):
        tokens = model.encode(seen, query=["the dog", None], num_tokens=4, block_size=3).tokens
        expected = model.encode(photos(2), query=["the dog", None], num_tokens=4).tokens
    assert tokens.isfinite().all()
    assert (tokens - expected).float().norm() < 0.3 * expected.float().norm()


def test_a_prefix_of_floats_is_checked(model: DoveModel) -> None:
    with pytest.raises(ImageError, match="floats must lie in"):
        model.prefix(photos(1).float())


def test_a_prefix_that_does_not_fit(model: DoveModel) -> None:
    seen = model.prefix(photos(2))
    with pytest.raises(QueryError) as caught:
        copy.deepcopy(model).encode(seen)
    assert str(caught.value) == "this prefix is another model's; make one with this model's `prefix`"
    with pytest.raises(ImageError, match="the prefix holds no image; choose at least one"):
        model.encode(seen[[]])
    with pytest.raises(ValueError, match="the pictures of a prefix are square; pass fit to `prefix`"):
        model.encode(seen, fit="pad")
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        model.prefix(photos(1), batch_size=0)
    with pytest.raises(ValueError, match="cuda_graph needs pictures, but a prefix was given; pass these or"):
        model.encode(seen, cuda_graph=True)
    other = micro()
    seen = other.prefix(photos(1))
    other.double()
    with pytest.raises(QueryError, match=r"was made in torch.float32 and the model is in torch.float64 now"):
        other.encode(seen)


# --- What is refused ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("query", "sentence"),
    [
        ("", "query is empty; for the whole picture pass None or leave it out"),
        (["the dog", " \n"], "query 1 is empty; for the whole picture pass None or leave it out"),
        ("x" * 13, "query has 13 tokens, this model takes 12 at most; shorten it"),
        ([None, "x" * 300], "query 1 has 300 tokens, this model takes 12 at most; shorten it"),
        ("\ud800", "query is not valid Unicode text (surrogates not allowed); write it in UTF-8"),
        (["the dog"], "query has 1 rows for 2 images; give one row an image"),
        (Query([1, 2]), "a query's values must be a tensor, got list"),  # type: ignore[arg-type]
        (
            [1, 2],
            "query must be a text, a list with a text or None for each image, or a `Query` of ids or "
            "embeddings",
        ),
        (
            torch.zeros(2, 3, dtype=torch.int64),
            "query must be a text, a list with a text or None for each image, or a `Query` of ids or "
            "embeddings",
        ),
        (
            Query(torch.full((2, 3), 276)),
            "query has ids from 276 to 276; this model knows 0 to 275",
        ),
        (
            Query(torch.zeros(2, 13, dtype=torch.int64)),
            "query has rows of 13 ids, the model takes 12 at most",
        ),
        (
            Query(torch.tensor(3)),
            "query must be ids int64 [B, Q] or embeddings [B, Q, 64] with Q at least 1, got torch.int64 []",
        ),
        (
            Query(torch.zeros(2, 3, 9)),
            "query must be ids int64 [B, Q] or embeddings [B, Q, 64] with Q at least 1, got torch.float32 "
            "[2, 3, 9]",
        ),
        (
            Query(torch.zeros(2, 3, dtype=torch.int64), torch.tensor([3, 3])),
            "the lengths of query must be int32 [2], got torch.int64 [2]",
        ),
        (
            Query(torch.zeros(2, 3, dtype=torch.int64), torch.tensor([0, 3], dtype=torch.int32)),
            "the lengths of query must be 1..3, got 0 to 3",
        ),
    ],
    ids=lambda value: "",
)  # fmt: skip
def test_queries_that_cannot_be_used(model: DoveModel, query: Any, sentence: str) -> None:
    with pytest.raises(QueryError) as caught:
        model.encode(photos(2), query=query)
    assert str(caught.value) == sentence


def test_a_model_without_query_weights_refuses_a_query() -> None:
    model = micro()
    for query in ("the dog", "null", [None, "the dog"]):
        with pytest.raises(QueryError) as caught:
            model.encode(photos(2), query=query)
        assert str(caught.value) == (
            "'micro' has no weights for text queries (query_vocab_size is 0); leave the query out, or use a "
            "model that has them, such as dove-tiny-q"
        )
    with pytest.raises(QueryError, match=r"has no weights for text queries .* leave the tokenizer out"):
        model.load_tokenizer("tokenizer.json")
    assert torch.equal(model.encode(photos(2), query=[None, None]).tokens, model.encode(photos(2)).tokens)


def test_a_model_without_a_tokenizer_says_where_it_belongs() -> None:
    model = micro(query_vocab_size=276, query_length=12)
    with pytest.raises(QueryError) as caught:
        model.encode(photos(1))
    assert str(caught.value) == (
        "'micro' reads text queries and has no tokenizer; put its tokenizer.json into the model's folder, or "
        "name the file in `load_tokenizer`"
    )
    assert len(model.encode(photos(1), query=Query(torch.tensor([[3, 7]])))) == 1


def test_without_the_library_the_sentence_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = asked(tmp_path)
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(QueryError) as caught:
        model.encode(photos(1), query="the dog")
    assert str(caught.value) == "text queries need the library tokenizers: pip install 'dove-ext[query]'"


# --- Files --------------------------------------------------------------------------------------------


def test_a_folder_carries_the_tokenizer(model: DoveModel, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path / "a")
    assert (tmp_path / "a" / "tokenizer.json").read_text(encoding="utf-8") == words()
    again = DoveModel.from_pretrained(tmp_path / "a")
    expected = model.encode(photos(2), query=["the dog", None])
    for other in (again, copy.deepcopy(model), pickle.loads(pickle.dumps(again))):
        same(other.encode(photos(2), query=["the dog", None]), expected)
    again.save_pretrained(tmp_path / "b")
    assert (tmp_path / "b" / "tokenizer.json").read_bytes() == (
        tmp_path / "a" / "tokenizer.json"
    ).read_bytes()


def test_a_damaged_tokenizer(tmp_path: Path) -> None:
    asked(tmp_path).save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(
        CheckpointError, match=r"tokenizer\.json is no tokenizer \(.*\); the model folder is dam"
    ):
        DoveModel.from_pretrained(tmp_path).encode(photos(1), query="the dog")
    (tmp_path / "tokenizer.json").write_bytes(b"\xff")
    with pytest.raises(CheckpointError, match=r"tokenizer\.json cannot be read"):
        DoveModel.from_pretrained(tmp_path)
    asked(tmp_path, query_vocab_size=275).save_pretrained(tmp_path)
    with pytest.raises(
        CheckpointError, match=r"has ids up to 275, this model embeds 275 \(query_vocab_size\)"
    ):
        DoveModel.from_pretrained(tmp_path).encode(photos(1), query="the dog")


def test_a_models_own_tokenizer_may_cut_and_pad(tmp_path: Path) -> None:
    """These settings of the file are for other uses: a query is neither cut nor padded."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_str(words())
    tokenizer.enable_truncation(2)
    tokenizer.enable_padding(length=9)
    model = asked(tmp_path)
    plain = model.queries("what dog", 1)
    (tmp_path / "other.json").write_text(tokenizer.to_str())
    model.load_tokenizer(tmp_path / "other.json")
    query = model.queries("what dog", 1)
    assert query is not None and plain is not None and torch.equal(query.values, plain.values)
    assert model.queries("<|endoftext|>", 1).values.shape[1] > 1, "a special token in a query is only text"  # type: ignore[union-attr]


def test_presets() -> None:
    with torch.device("meta"):
        model = DoveModel("dove-base-q")
    assert model.config.query_vocab_size == 50304 and model.config.query_length == 64
    assert model.generator.embed_in is not None and model.generator.embed_in.weight.shape == (50304, 512)
