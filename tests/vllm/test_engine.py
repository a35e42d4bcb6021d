"""Greedy answers are transformers' own, whatever else is asked at the same time or was asked before."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.vllm.served import NONE, ONE, TILED, TWO, WRONG, Case, Reference, ask, engine, pictures


@pytest.fixture(scope="module")
def reference(llama_folder: Path) -> Reference:
    return Reference(llama_folder)


@pytest.fixture(scope="module")
def llm(llama_folder: Path) -> Iterator[Any]:
    with engine(llama_folder, enable_prefix_caching=True, block_size=32) as llm:
        yield llm


def test_one_two_and_no_images_in_one_batch(llm: Any, reference: Reference) -> None:
    cases = [Case(ONE, (0,)), Case(TWO, (5, 8)), Case(NONE), Case(TWO, (3, 3)), Case("<s> <image>", (2,))]
    answers = ask(llm, cases)
    assert answers == [reference(case) for case in cases]
    assert len({tuple(answer.words) for answer in answers}) == len(cases)  # they depend on what was asked


def test_what_a_request_asks_changes_its_prompt(llm: Any, reference: Reference) -> None:
    asked: list[dict[str, Any]] = [
        {},
        {"num_tokens": 7},
        {"max_tokens": 5},
        {"eos_threshold": 0.05},
        {"target_psnr": 20.0},
        {"images_kwargs": {"num_tokens": 90}},
    ]
    cases = [Case(ONE, (8,), tuple(options.items())) for options in asked]
    expected = [reference(case) for case in cases]
    assert ask(llm, cases) == expected
    lengths = [len(answer.prompt) for answer in expected]
    assert lengths[1] == 5 + 7 and lengths[2] == 5 + 5 and lengths[5] == 5 + 90
    assert len(set(lengths)) == len(lengths)


def test_pictures_of_one_length_in_a_row_under_one_prompt(llm: Any, reference: Reference) -> None:
    """A cache by the ids of the prompt, which are all the same, would serve the first picture thrice."""
    cases = [Case(ONE, (i,), (("num_tokens", 140),)) for i in (0, 4, 8)]
    answers = [ask(llm, [case])[0] for case in cases]
    assert answers == [reference(case) for case in cases]
    assert answers[0].prompt == answers[1].prompt == answers[2].prompt
    assert len({tuple(answer.words) for answer in answers}) == 3
    (again,) = llm.generate([cases[0].for_vllm()], use_tqdm=False)
    assert again.num_cached_tokens >= 128  # the cache is there
    assert ask(llm, cases) == answers


def test_own_lengths_in_a_row_under_one_prompt(llm: Any, reference: Reference) -> None:
    cases = [Case(ONE, (i,)) for i in (1, 5, 9)]
    assert [ask(llm, [case])[0] for case in cases] == [reference(case) for case in cases]


def tiled(text: str, *images: int, **options: Any) -> Case:
    return Case(text, images, tuple({"tiles": 4, **options}.items()))


def test_tiles_beside_whole_pictures_and_none(llm: Any, reference: Reference) -> None:
    several, four, one, _ = TILED
    cases = [tiled(ONE, several), Case(ONE, (several,)), Case(NONE), tiled(TWO, four, one, max_tokens=60)]
    cases += [tiled(ONE, one), tiled(ONE, 3, tiles=(2, 6), num_tokens=20), tiled(ONE, several, tiles="auto")]
    answers = ask(llm, cases)
    assert answers == [reference(case) for case in cases]
    counts = [reference.made(case).get("image_tile_ends", torch.zeros(0)) for case in cases]
    assert [int((ends > 0).sum()) for ends in counts] == [3, 0, 0, 5 + 1, 1, 5, 3]
    assert len(answers[5].prompt) == 5 + 20 + 5  # numbers are the picture's, and the ends come on top
    assert len({tuple(answer.words) for answer in answers}) >= len(cases) - 1  # the last is the first again


def test_tiles_of_one_length_in_a_row_under_one_prompt(llm: Any, reference: Reference) -> None:
    cases = [tiled(ONE, i, num_tokens=120) for i in (TILED[0], TILED[-1])]
    answers = [ask(llm, [case])[0] for case in cases]
    assert answers == [reference(case) for case in cases]
    ends = [reference.made(case)["image_tile_ends"] for case in cases]
    assert len(answers[0].prompt) == len(answers[1].prompt) and not torch.equal(*ends)
    assert answers[0].words != answers[1].words
    (again,) = llm.generate([cases[0].for_vllm()], use_tqdm=False)
    assert again.num_cached_tokens >= 96  # the cache is there
    assert ask(llm, cases) == answers


def test_a_conversation(llm: Any, reference: Reference) -> None:
    from vllm import SamplingParams

    content = [{"type": "image_pil", "image_pil": pictures()[5]}, {"type": "text", "text": "what is this ?"}]
    (output,) = llm.chat(
        [{"role": "user", "content": content}],
        SamplingParams(temperature=0, max_tokens=6, ignore_eos=True),
        chat_template_content_format="openai",
        use_tqdm=False,
    )
    expected = reference(Case("<s> <image> what is this ?", (5,)))
    assert list(output.prompt_token_ids) == expected.prompt
    assert list(output.outputs[0].token_ids) == expected.words


@pytest.mark.parametrize(
    ("case", "sentence"),
    [
        *((Case(ONE, (0,), tuple(options.items())), sentence) for options, sentence in WRONG),
        (Case(ONE, (0,), (("query", "the dog"),)), "no weights for text queries"),
        (Case(ONE, (12,), (("tiles", 4), ("fit", "crop"))), "fit says how a picture becomes square"),
        (Case(ONE, (12,), (("tiles", 4), ("num_tokens", 2))), "a token for each tile of a picture, 3 for"),
        (Case(ONE, (12,), (("tiles", 4), ("drop_empty", True))), "it needs a query and a model with a"),
        (Case(TWO, (0,)), "the prompt has 2 <image> for 1 images"),
        (Case(NONE, (0,)), "the prompt has 0 <image> for 1 images"),
    ],
)
def test_what_is_wrong_with_a_request_ends_it_alone(
    llm: Any, reference: Reference, case: Case, sentence: str
) -> None:
    good = Case(TWO, (5, 8))
    with pytest.raises(ValueError, match=sentence):
        ask(llm, [good, case])
    assert ask(llm, [good]) == [reference(good)]  # and nothing of the call before is left over


def test_a_placeholder_without_a_picture_is_text(llm: Any, reference: Reference) -> None:
    """vLLM asks nobody about prompts without pictures; the engine lives on."""
    ask(llm, [Case(ONE)])
    assert ask(llm, [Case(NONE)]) == [reference(Case(NONE))]


def test_two_hundred_requests_of_all_kinds(llm: Any, reference: Reference) -> None:
    chance = random.Random(0)
    kinds = [Case(NONE), Case("<s> is there a dog on the table ?")]
    for i in range(12):
        kinds += [Case(ONE, (i,)), Case(ONE, (i,), (("num_tokens", 3 + i),)), Case(TWO, (i, (i + 5) % 12))]
    cases = [chance.choice(kinds) for _ in range(200)]
    answers = ask(llm, cases)
    assert len(answers) == 200
    assert [i for i in range(200) if answers[i] != reference(cases[i])] == []
