"""Queries, prompts in chunks shorter than a picture, and caches smaller than the work."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from tests.vllm.served import NONE, ONE, TWO, Case, Reference, ask, engine, save
from tests.vlm.small import WORDS


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """dove-tiny-q before a Qwen2 of two layers, whose embeddings are tied; it reads tiles."""
    torch.manual_seed(3)
    config = AutoConfig.for_model(
        "qwen2",
        vocab_size=len(WORDS),
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        initializer_range=0.3,
        pad_token_id=0,
        tie_word_embeddings=True,
    )
    language_model = AutoModelForCausalLM.from_config(config).eval()
    return save(tmp_path_factory.mktemp("qwen2"), "dove-tiny-q", language_model, tile_separators=True)


@pytest.fixture(scope="module")
def reference(folder: Path) -> Reference:
    return Reference(folder)


@pytest.fixture(scope="module")
def llm(folder: Path) -> Iterator[Any]:
    with engine(
        folder,
        enable_prefix_caching=False,
        enable_chunked_prefill=True,
        max_num_batched_tokens=32,
        max_num_seqs=4,
        max_model_len=384,
        block_size=32,
        num_gpu_blocks_override=14,  # of 32 positions: not two of the longest prompts at once
        mm_processor_cache_gb=0.001,  # three pictures of 140 tokens
    ) as llm:
        yield llm


def test_chunks_that_are_shorter_than_a_picture(llm: Any, reference: Reference) -> None:
    cases = [
        Case(ONE, (0,)),
        Case(TWO, (5, 8)),
        Case(NONE),
        Case(ONE, (3,), (("num_tokens", 100),)),
        Case(TWO, (2, 7), (("num_tokens", 70),)),
    ]
    answers = ask(llm, cases)
    assert answers == [reference(case) for case in cases]
    assert max(len(answer.prompt) for answer in answers) > 4 * 32


def test_one_picture_under_two_queries(llm: Any, reference: Reference) -> None:
    cases = [Case(ONE, (8,), (("query", text), ("num_tokens", 12))) for text in ("the sky", "the left side")]
    cases += [Case(ONE, (8,), (("num_tokens", 12),))]
    answers = ask(llm, cases)
    assert answers == [reference(case) for case in cases]
    assert answers[0].prompt == answers[1].prompt  # so it is the tokens that differ
    assert len({tuple(answer.words) for answer in answers}) == 3
    assert [ask(llm, [case])[0] for case in cases] == answers


def test_a_query_may_shorten_a_picture(llm: Any, reference: Reference) -> None:
    cases = [Case(ONE, (8,), (("query", "the sky"),)), Case(ONE, (8,))]
    answers = ask(llm, cases)
    assert answers == [reference(case) for case in cases]
    assert len(answers[0].prompt) != len(answers[1].prompt)


def test_tiles_under_a_query(llm: Any, reference: Reference) -> None:
    """In chunks, too; a tile that is left out leaves its end behind."""
    asked: dict[str, Any] = {"tiles": 4, "query": "the left side", "max_tokens": 60}
    kinds = [asked, {**asked, "query": "the sky"}, {**asked, "drop_empty": True}]
    cases = [Case(ONE, (13,), tuple(options.items())) for options in kinds] + [Case(ONE, (5,)), Case(NONE)]
    answers = ask(llm, cases)
    assert answers == [reference(case) for case in cases]
    assert len(answers[0].prompt) > 2 * 32
    dropped = reference.made(cases[2])["image_tile_ends"]
    assert int((dropped > 0).sum()) == 5 and bool((dropped[1:] * dropped[:-1] > 0).any())
    assert len({tuple(answer.words) for answer in answers}) == len(cases)


def test_caches_smaller_than_the_work(llm: Any, reference: Reference) -> None:
    cases = [Case(ONE, (i,), (("num_tokens", 140 + i),)) for i in range(9)]
    expected = [reference(case) for case in cases]
    assert ask(llm, cases * 2) == expected * 2
    assert ask(llm, cases[::-1]) == expected[::-1]


def test_refusals(llm: Any, reference: Reference) -> None:
    from vllm.exceptions import VLLMValidationError

    for query, sentence in (
        ("", "query is empty"),
        ("word " * 200, "takes .* at most"),
        (3, "one text for all"),
    ):
        with pytest.raises(ValueError, match=sentence):
            ask(llm, [Case(ONE, (0,), (("query", query),))])
    with pytest.raises(VLLMValidationError, match="longer than the maximum model length"):
        ask(llm, [Case(TWO, (0, 1), (("num_tokens", 256),))])
    assert ask(llm, [Case(NONE)]) == [reference(Case(NONE))]
