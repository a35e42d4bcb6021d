"""What a request may ask, and what must fit before it reaches an engine."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from dove_vlm.serving.requests import check_prompt, image_options, joined_rows, rows_of_images

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
        ({"min_tokens": 5, "max_tokens": 3}, "min_tokens must be at most max_tokens, 3, got 5"),
        ({"num_tokens": 3, "max_tokens": 5}, "num_tokens decides the lengths; it cannot be combined"),
        ({"eos_threshold": "0.5"}, "eos_threshold must be a number, got '0.5'"),
        ({"eos_threshold": 2}, "eos_threshold must be between 0 and 1, got 2"),
        ({"target_psnr": True}, "target_psnr must be a number, got True"),
        ({"token_budget": 9}, "token_budget is for all images of a call"),
        ({"query": ["a", "b"]}, "query must be one text for all images of the request"),
        ({"tiles": 4}, "this model reads no tiles; leave tiles out"),
        ({"tiles": 0}, "tiles must be a whole number from 1 to 4096"),
        ({"drop_empty": "no"}, "drop_empty must be true or false, got 'no'"),
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


@pytest.mark.parametrize("tiles", [12, (4, 12), [4, 12], "auto"])
def test_tiles_as_the_processor_takes_them(tiles: Any) -> None:
    asked = {"tiles": tiles, "drop_empty": True, "max_tokens": 10 * SLOTS}  # numbers are of the picture
    assert image_options(asked, {}, SLOTS, tile_separators=True) == asked
    assert image_options({"num_tokens": 9 * SLOTS}, {}, SLOTS, tile_separators=True, tiles=tiles)
    assert image_options({**asked, "min_tokens": SLOTS}, {}, SLOTS, tile_separators=True)
    with pytest.raises(ValueError, match="min_tokens must be between 1 and 64, got 65"):  # a tile's
        image_options({**asked, "min_tokens": SLOTS + 1}, {}, SLOTS, tile_separators=True)
    with pytest.raises(ValueError, match="num_tokens must be between 1 and 64, got 576"):
        image_options({"num_tokens": 9 * SLOTS}, {}, SLOTS, tile_separators=True)


def test_a_request_chooses_between_fit_and_tiles() -> None:
    server = {"tiles": 6, "drop_empty": False, "max_tokens": 9}
    assert image_options({"fit": "pad"}, server, SLOTS, tile_separators=True) == {
        "fit": "pad",
        "max_tokens": 9,
    }
    assert image_options({"tiles": 4}, {"fit": "crop"}, SLOTS, tile_separators=True) == {"tiles": 4}
    for both in ({"tiles": 4, "fit": "crop"}, {"fit": "crop"}):
        with pytest.raises(ValueError, match="fit says how a picture becomes square"):
            image_options(both, {}, SLOTS, tile_separators=True, tiles=12)


@pytest.mark.parametrize("tiles", [12, "auto"])
def test_a_processor_with_tiles_needs_a_model_that_reads_them(tiles: Any) -> None:
    assert image_options({}, {}, SLOTS, tile_separators=True, tiles=tiles) == {}
    for server, own in (({}, tiles), ({"tiles": tiles}, None)):
        with pytest.raises(ValueError, match="this model reads no tiles"):
            image_options({}, server, SLOTS, tiles=own)


def test_placeholders_are_those_of_the_pictures() -> None:
    check_prompt(2, 2, "<image>")
    with pytest.raises(ValueError, match="the prompt has 2 <image> for 1 images; write <image> once"):
        check_prompt(2, 1, "<image>")


def test_rows_of_images() -> None:
    tokens = torch.arange(12.0).view(6, 2)
    (first, second), ends = rows_of_images(tokens, [2, 4], None, images=2, width=2)
    assert torch.equal(first, tokens[:2]) and torch.equal(second, tokens[2:])
    assert first.untyped_storage().nbytes() == 2 * 2 * 4  # a cache keeps one picture's, not the call's
    assert [kinds.tolist() for kinds in ends] == [[0, 0], [0, 0, 0, 0]]


def test_rows_of_tiles() -> None:
    tokens = torch.arange(12.0).view(6, 2)
    kinds = torch.tensor([0, 2, 0, 0, 1, 2, 0, 0, 0, 2], dtype=torch.int8)
    (first, second), ends = rows_of_images(tokens, [6, 4], kinds, images=2, width=2)
    assert torch.equal(first, tokens[:3]) and torch.equal(second, tokens[3:])
    assert torch.equal(ends[0], kinds[:6]) and torch.equal(ends[1], kinds[6:])
    assert ends[0].untyped_storage().nbytes() == 6
    assert joined_rows([first, second], ends, [6, 4]) == [6, 4]


ENDS = torch.tensor([0, 2, 0, 0, 0, 0, 0, 2], dtype=torch.int8)


@pytest.mark.parametrize(
    ("counts", "ends", "images", "width", "sentence"),
    [
        ([2, 3], None, 2, 2, r"images were counted as \[2, 3\] placeholders, 5 of them tokens, and have 6"),
        ([6, 0], None, 2, 2, r"images were counted as \[6, 0\] placeholders"),
        ([6], None, 2, 2, "1 images were counted of 2"),
        ([2, 4], None, 2, 3, r"the encoder's tokens are \[6, 2\], this model reads \[T, 3\]"),
        ([2, 5], ENDS, 2, 2, r"images were counted as \[2, 5\] placeholders"),
        ([2, 6], ENDS.clamp_max(0), 2, 2, r"\[2, 6\] placeholders, 8 of them tokens, and have 6"),
        ([1, 1, 6], ENDS, 3, 2, r"\[1, 1, 6\] placeholders, 6 of them tokens"),  # the second has none
    ],
)
def test_rows_that_do_not_fit(counts: list[int], ends: Any, images: int, width: int, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        rows_of_images(torch.zeros(6, 2), counts, ends, images, width)


def test_one_row_short_is_named_before_the_engine_uses_it() -> None:
    whole, tiles = torch.zeros(2, dtype=torch.int8), torch.tensor([0, 0, 0, 0, 2], dtype=torch.int8)
    assert joined_rows([torch.zeros(2, 3), torch.zeros(4, 3)], [whole, tiles], [2, 5]) == [2, 5]
    with pytest.raises(ValueError, match="image 1 has 4 features, but num_image_tokens says 5"):
        joined_rows([torch.zeros(2, 3), torch.zeros(3, 3)], [whole, tiles], [2, 5])
    with pytest.raises(ValueError, match="image 1 has 4 features, but num_image_tokens says 5"):
        joined_rows([torch.zeros(2, 3), torch.zeros(4, 3)], [whole, tiles[1:]], [2, 5])
