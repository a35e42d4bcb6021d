"""Greedy answers are transformers' own, whatever else is asked at the same time or was asked before."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.vllm.served import Case, Reference, ask, engine, pictures

ONE = "<s> what is this <image> ?"
TWO = "<s> <image> is left of <image> ?"
NONE = "<s> how many cups are there ?"


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
        (Case(ONE, (0,), (("num_tokens", 0),)), "num_tokens must be between 1 and 256, got 0"),
        (Case(ONE, (0,), (("num_tokens", 3), ("max_tokens", 3))), "num_tokens decides the lengths"),
        (Case(ONE, (0,), (("query", "the dog"),)), "no weights for text queries"),
        (Case(ONE, (0,), (("token_budget", 9),)), "token_budget is for all images of a call"),
        (Case(ONE, (0,), (("size", 3),)), "an image has no option 'size'"),
        (Case(ONE, (0,), (("fit", "stretch"),)), "fit must be one of"),
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
