"""Requests of rows: those of the model, for each placeholder of the prompt."""

from __future__ import annotations

import pytest
import torch

from dove_vlm.serving.prompt_embeds import prompt_embeds
from dove_vlm.serving.sglang.requests import precomputed_embedding
from tests.vlm.small import PROMPTS, batch, images, model, processor


def test_a_request_has_the_rows_of_all_its_pictures() -> None:
    vlm, pictures = model(tile_separators=True), images(3)
    wide = torch.cat(pictures, dim=-1)
    made = processor(tiles=4)(images=[wide, pictures[0]], text=PROMPTS[1], return_tensors="pt")
    request = precomputed_embedding(vlm, made)
    (item,) = request["image_data"]
    at = made["input_ids"][0] == vlm.config.image_token_id
    assert request["input_ids"] == made["input_ids"][0].tolist()
    assert item["format"] == "precomputed_embedding" and item["counts"] == made["num_image_tokens"].tolist()
    assert torch.equal(item["feature"], prompt_embeds(vlm, made)[0][at]) and not item["feature"].requires_grad


def test_without_pictures_and_without_padding() -> None:
    made = processor()(text=[PROMPTS[2]], padding="max_length", max_length=12, return_tensors="pt")
    assert (made["attention_mask"] == 0).any()
    request = precomputed_embedding(model(), made)
    assert request == {"input_ids": processor().tokenizer(PROMPTS[2])["input_ids"]}


def test_refusals() -> None:
    with pytest.raises(ValueError, match="a request has one prompt, got 3 rows"):
        precomputed_embedding(model(), batch())
    made = processor()(images=images(1), text=PROMPTS[0], return_tensors="pt")
    with pytest.raises(ValueError, match="num_image_tokens sums to"):
        precomputed_embedding(model(), {**made, "num_image_tokens": made["num_image_tokens"] + 1})
    with pytest.raises(ValueError, match=r"image 0 has .* features, but row 0 has room for"):
        precomputed_embedding(model(), {**made, "input_ids": made["input_ids"][:, :-3],
                                        "attention_mask": made["attention_mask"][:, :-3]})  # fmt: skip
