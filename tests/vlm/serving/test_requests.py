"""What a request may ask, and what must fit before it reaches an engine."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from dove_vlm.serving.requests import check_prompt, check_whole, image_options, joined_rows, rows_of_images

SLOTS = 64


def test_a_request_with_lengths_has_none_of_the_servers() -> None:
    server = {"max_tokens": 9, "fit": "crop", "device": "cpu"}
    assert image_options({}, server, SLOTS) == server
    asked = image_options({"num_tokens": 3, "query": "a dog"}, server, SLOTS)
    assert asked == {"num_tokens": 3, "query": "a dog", "fit": "crop", "device": "cpu"}
    assert image_options({"fit": "pad"}, server, SLOTS) == {**server, "fit": "pad"}


def test_options_come_flat_or_for_images() -> None:
    assert image_options({"images_kwargs": {"num_tokens": 3}, "query": None}, {}, SLOTS) == {"num_tokens": 3}
    assert image_options({}, {"images_kwargs": {"target_psnr": 30}}, SLOTS) == {"target_psnr": 30}


@pytest.mark.parametrize(
    ("asked", "sentence"),
    [
        ({"num_tokens": 0}, "num_tokens must be between 1 and 64, got 0"),
        ({"num_tokens": 65}, "num_tokens must be between 1 and 64, got 65"),
        ({"max_tokens": "many"}, "max_tokens must be between 1 and 64, got 'many'"),
        ({"num_tokens": 3, "max_tokens": 5}, "num_tokens decides the lengths; it cannot be combined"),
        ({"eos_threshold": "0.5"}, "eos_threshold must be a number, got '0.5'"),
        ({"eos_threshold": 2}, "eos_threshold must be between 0 and 1, got 2"),
        ({"target_psnr": True}, "target_psnr must be a number, got True"),
        ({"token_budget": 9}, "token_budget is for all images of a call"),
        ({"query": ["a", "b"]}, "query must be one text for all images of the request"),
        ({"tiles": 4}, "an image has no option 'tiles' here"),
        ({"size": 224}, "an image has no option 'size' here"),
        ({"device": "cuda"}, "an image has no option 'device' here"),  # whoever asks does not choose it
        ({"images_kwargs": 3}, "images_kwargs must be a table"),
    ],
)
def test_refusals(asked: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        image_options(asked, {}, SLOTS)


def test_the_servers_own_are_checked_before_there_is_a_request() -> None:
    with pytest.raises(ValueError, match="max_tokens must be between 1 and 64, got 0"):
        image_options({}, {"max_tokens": 0}, SLOTS)


def test_a_model_for_tiles_is_refused_at_the_start() -> None:
    check_whole(False, None)
    for separators, tiles in ((True, None), (False, 12), (True, "auto")):
        with pytest.raises(ValueError, match="reads pictures in tiles, which vLLM's plugin does not"):
            check_whole(separators, tiles)


def test_placeholders_are_those_of_the_pictures() -> None:
    check_prompt(2, 2, "<image>")
    with pytest.raises(ValueError, match="the prompt has 2 <image> for 1 images; write <image> once"):
        check_prompt(2, 1, "<image>")


def test_rows_of_images() -> None:
    tokens = torch.arange(12.0).view(6, 2)
    first, second = rows_of_images(tokens, [2, 4], images=2, width=2)
    assert torch.equal(first, tokens[:2]) and torch.equal(second, tokens[2:])
    assert first.untyped_storage().nbytes() == 2 * 2 * 4  # a cache keeps one picture's, not the call's


@pytest.mark.parametrize(
    ("counts", "images", "width", "sentence"),
    [
        ([2, 3], 2, 2, r"images were counted as \[2, 3\] tokens and have 6 together"),
        ([6, 0], 2, 2, r"images were counted as \[6, 0\] tokens"),
        ([6], 2, 2, "1 images were counted of 2"),
        ([2, 4], 2, 3, r"the encoder's tokens are \[6, 2\], this model reads \[T, 3\]"),
    ],
)
def test_rows_that_do_not_fit(counts: list[int], images: int, width: int, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        rows_of_images(torch.zeros(6, 2), counts, images, width)


def test_one_row_short_is_named_before_the_engine_uses_it() -> None:
    assert joined_rows([torch.zeros(2, 3), torch.zeros(5, 3)], [2, 5]) == [2, 5]
    with pytest.raises(ValueError, match="image 1 has 4 features, but num_image_tokens says 5"):
        joined_rows([torch.zeros(2, 3), torch.zeros(4, 3)], [2, 5])
