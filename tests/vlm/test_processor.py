"""Prompts get room for exactly the tokens of their own images."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.vlm.small import PROMPTS, TEMPLATE, WORDS, batch, encoder, images, processor

PLACE = len(WORDS)


def places(ids: torch.Tensor) -> list[int]:
    return (ids == PLACE).sum(1).tolist()


def test_a_prompt_has_as_many_placeholders_as_its_images_have_tokens() -> None:
    made = batch()
    first, second, third = made["num_image_tokens"].tolist()
    assert places(made["input_ids"]) == [first, second + third, 0]
    assert [k for k in made if k not in ("input_ids", "attention_mask")] == [
        "image_tokens",
        "num_image_tokens",
    ]
    row = made["input_ids"][1].tolist()
    start = row.index(PLACE)
    assert row[start : start + second] == [PLACE] * second and row[start + second] != PLACE


@pytest.mark.parametrize("form", ["flat", "nested", "tokens"])
def test_images_come_flat_or_by_prompt_or_as_tokens(form: str) -> None:
    a, b, c = images(3)
    pictures: Any = {"flat": [a, b, c], "nested": [a, [b, c], []], "tokens": encoder().encode([a, b, c])}[
        form
    ]
    made = processor()(images=pictures, text=PROMPTS, padding=True, return_tensors="pt")
    assert torch.equal(made["input_ids"], batch()["input_ids"])
    assert torch.equal(made["image_tokens"], batch()["image_tokens"])


def test_a_limit_of_a_request_changes_the_prompt() -> None:
    """Others' processors take such limits and ignore them."""
    assert places(batch(max_tokens=4)["input_ids"]) == [4, 8, 0]
    assert places(batch(images_kwargs={"num_tokens": 5})["input_ids"]) == [5, 10, 0]
    assert batch(token_budget=50)["num_image_tokens"].sum() == 50


def test_one_prompt_and_one_image() -> None:
    made = processor()(images=images(1)[0], text=PROMPTS[0], return_tensors="pt")
    assert places(made["input_ids"]) == made["num_image_tokens"].tolist()
    alone = processor()(text="<s> what is this ?", return_tensors="pt")
    assert set(alone) == {"input_ids", "attention_mask"}
    empty = processor()(text="<s> what is this ?", images=[[]], return_tensors="pt")
    assert torch.equal(empty["input_ids"], alone["input_ids"])
    pictures = processor()(images=images(2), return_tensors="pt")
    assert set(pictures) == {"image_tokens", "num_image_tokens"}


@pytest.mark.parametrize(
    ("text", "count", "sentence"),
    [
        (["<s> <image> ?"], 2, "the prompts have 1 <image> for 2 images"),
        (["<s> <image> <image> ?"], 1, "the prompts have 2 <image> for 1 images"),
        (["<s> <image> ?"], 0, "the prompts have 1 <image> for 0 images"),
        (["<s> what ?"], 1, "the prompts have 0 <image> for 1 images"),
    ],
)
def test_another_number_of_images_is_refused(text: list[str], count: int, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        processor()(images=images(count) if count else None, text=text)


def test_images_of_the_wrong_prompt_are_refused() -> None:
    """The sums agree, so transformers would take them."""
    a, b, c = images(3)
    with pytest.raises(ValueError, match="prompt 0 has 1 <image> for 2 images"):
        processor()(images=[[a, b], [c], []], text=PROMPTS)
    with pytest.raises(ValueError, match="there are 3 prompts, but lists of images for 2"):
        processor()(images=[[a], [b, c]], text=PROMPTS)


def test_truncation_of_image_tokens_is_refused() -> None:
    with pytest.raises(ValueError, match="shorten images with max_tokens instead"):
        batch(truncation=True, max_length=10)
    assert batch(truncation=True, max_length=40, max_tokens=3)["input_ids"].shape[1] <= 40


def test_other_refusals() -> None:
    with pytest.raises(ValueError, match="neither text nor image"):
        processor()()
    with pytest.raises(ValueError, match="takes no audio"):
        processor()(text="<s>", audio=[1.0])
    with pytest.raises(ValueError, match="a prompt or a list of prompts"):
        processor()(text=[["<s>"]])


def test_sizes_tell_no_counts() -> None:
    """Engines that ask for the number of tokens by the size of a picture are told why there is none."""
    with pytest.raises(NotImplementedError, match="depends on what is in it, not on its size"):
        processor()._get_num_multimodal_tokens(image_sizes=[(32, 32)])


def test_the_image_token_is_added_once_and_not_said() -> None:
    made = processor()
    assert made.image_token_id == PLACE and len(made.tokenizer) == PLACE + 1
    assert type(made)(made.image_processor, made.tokenizer).image_token_id == PLACE
    assert made.decode([5, PLACE, 5], skip_special_tokens=True) == "is is"


def test_chat_template() -> None:
    made = processor()
    made.chat_template = TEMPLATE
    from PIL import Image

    picture = Image.fromarray(images(1)[0].permute(1, 2, 0).numpy())
    content = [{"type": "image", "image": picture}, {"type": "text", "text": "what is this ?"}]
    ready = made.apply_chat_template(
        [{"role": "user", "content": content}], tokenize=True, return_dict=True, return_tensors="pt"
    )
    expected = made(images=picture, text="<s> <image> what is this ?", return_tensors="pt")
    assert torch.equal(ready["input_ids"], expected["input_ids"])
    assert torch.equal(ready["image_tokens"], expected["image_tokens"])
