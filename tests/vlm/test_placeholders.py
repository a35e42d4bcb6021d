"""Features that do not fit their places are refused image by image; their total alone says nothing."""

from __future__ import annotations

import pytest
import torch
from transformers.modeling_outputs import BaseModelOutputWithPooling

from dove_vlm.placeholders import check_counts, check_places
from tests.vlm.small import batch, encoder, images, model


def mask(*rows: str) -> torch.Tensor:
    return torch.tensor([[c == "x" for c in row] for row in rows])


@pytest.mark.parametrize(
    ("rows", "lengths"),
    [
        (["xx.xxx", "......"], [2, 3]),
        (["xxxxx.", ".xx..x"], [2, 3, 2, 1]),  # two images with nothing between them
        (["xx", "xx"], [2, 2]),  # the end of a row and the beginning of the next
        (["......"], []),
        (["xx.xx."], [0, 2, 0, 2, 0]),
    ],
)
def test_what_fits(rows: list[str], lengths: list[int]) -> None:
    check_places(mask(*rows), lengths)


@pytest.mark.parametrize(
    ("rows", "lengths", "sentence"),
    [
        (["xx.xxx"], [3, 2], "image 0 has 3 features, but row 0 has room for 2"),
        ([".xx...", "xxx..."], [2, 2], "row 1 has 1 placeholders for which there is no image"),
        ([".xx...", "xxx..."], [2, 4], "image 1 has 4 features, but row 1 has room for 3"),
        (["xx.xx."], [2, 1, 2], "image 2 has 2 features, but row 0 has room for 1"),
        (["xx...."], [2, 3], "image 1 has 3 features, but there is no placeholder left"),
        (["xx", "xx"], [4], "image 0 has 4 features, but row 0 has room for 2"),
    ],
)
def test_what_does_not(rows: list[str], lengths: list[int], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        check_places(mask(*rows), lengths)


def test_counts() -> None:
    check_counts([3, 4], torch.tensor([3, 4]))
    check_counts([3, 4], None)
    with pytest.raises(ValueError, match="image 1 has 4 features, but num_image_tokens says 5"):
        check_counts([3, 4], [3, 5])
    with pytest.raises(ValueError, match="features of 2 images, but num_image_tokens names 1"):
        check_counts([3, 4], [7])


def test_a_wrong_order_is_refused_though_the_total_is_right() -> None:
    vlm, made = model(), batch()
    outputs = vlm.get_image_features(
        image_tokens=made["image_tokens"], num_image_tokens=made["num_image_tokens"]
    )
    swapped = BaseModelOutputWithPooling(pooler_output=[outputs.pooler_output[i] for i in (1, 0, 2)])
    text = {"input_ids": made["input_ids"], "attention_mask": made["attention_mask"]}
    for run in (vlm.forward, vlm.generate):
        with pytest.raises(ValueError, match=r"image 0 has .* features, but row 0 has room for"):
            run(**text, mm_encoder_outputs={"image": swapped})
        with pytest.raises(ValueError, match="num_image_tokens says"):
            counts = made["num_image_tokens"]
            run(**text, mm_encoder_outputs={"image": swapped}, num_image_tokens=counts)
    # Side by side they fill one run, in whose middle nothing tells them apart but the counts.
    beside = torch.full((1, 9), vlm.config.image_token_id)
    two = BaseModelOutputWithPooling(pooler_output=[torch.zeros(5, 64), torch.zeros(4, 64)])
    with pytest.raises(ValueError, match="image 0 has 5 features, but num_image_tokens says 4"):
        vlm(input_ids=beside, mm_encoder_outputs={"image": two}, num_image_tokens=[4, 5])


def test_what_else_does_not_fit_together() -> None:
    vlm, made = model(), batch()
    text = {"input_ids": made["input_ids"], "attention_mask": made["attention_mask"]}
    tokens, counts = made["image_tokens"], made["num_image_tokens"]
    with pytest.raises(ValueError, match="num_image_tokens sums to"):
        vlm(**text, image_tokens=tokens[1:], num_image_tokens=counts)
    with pytest.raises(ValueError, match="image_tokens needs num_image_tokens"):
        vlm(**text, image_tokens=tokens)
    with pytest.raises(ValueError, match=r"image_tokens must be \[T, 64\]"):
        vlm(**text, image_tokens=tokens[:, 1:], num_image_tokens=counts)
    with pytest.raises(ValueError, match="either pixel_values or image_tokens"):
        vlm(**text, image_tokens=tokens, pixel_values=torch.zeros(3, 3, 32, 32), num_image_tokens=counts)
    with pytest.raises(ValueError, match="leave pixel_values and image_tokens out"):
        given = vlm.get_image_features(image_tokens=tokens, num_image_tokens=counts)
        vlm(**text, image_tokens=tokens, num_image_tokens=counts, mm_encoder_outputs={"image": given})
    with pytest.raises(ValueError, match="num_image_tokens names 2 images, pixel_values has 3"):
        vlm(**text, pixel_values=torch.zeros(3, 3, 32, 32), num_image_tokens=counts[:2])
    with pytest.raises(ValueError, match="image 1 is to have 65 tokens; this model gives an image 1 to 64"):
        vlm.vision_tower(torch.zeros(2, 3, 32, 32), num_image_tokens=[3, 65])
    with pytest.raises(ValueError, match="must be what get_image_features returns"):
        vlm(**text, mm_encoder_outputs={"image": {"pooler_output": [tokens]}})
    with pytest.raises(ValueError, match="num_image_tokens says"):
        vlm(**text, image_tokens=encoder().encode(images(3)), num_image_tokens=counts + 1)
