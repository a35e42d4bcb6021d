"""Rows for a server of the language model alone are those that the whole model reads."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from dove_vlm import DoveDataCollator
from dove_vlm.serving.prompt_embeds import prompt_embeds
from tests.vlm.small import PROMPTS, batch, images, llama, model, processor


def read_by(vlm: Any, inputs: Any) -> Tensor:
    """What its language model gets, [B, L, hidden]."""
    seen: list[Tensor] = []
    hook = vlm.language_model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["inputs_embeds"]), with_kwargs=True
    )
    with torch.no_grad():
        vlm(**inputs)
    hook.remove()
    return seen[0]


@pytest.mark.parametrize("options", [{}, {"num_tokens": 3}, {"return_pixel_values": True}])
def test_they_are_the_models_own(options: dict[str, Any]) -> None:
    vlm, made = model(), batch(**options)
    rows, expected = prompt_embeds(vlm, made), read_by(vlm, made)
    for row, all_of_it, mask in zip(rows, expected, made["attention_mask"].bool(), strict=True):
        assert torch.equal(row, all_of_it[mask])
    assert len({len(row) for row in rows}) == 3 and not rows[0].requires_grad


def test_pictures_in_tiles() -> None:
    vlm = model(tile_separators=True)
    wide = torch.cat(images(3), dim=-1)
    made = processor(tiles=4)(images=[wide], text=PROMPTS[0], return_tensors="pt")
    assert "image_tile_ends" in made
    assert torch.equal(prompt_embeds(vlm, made)[0], read_by(vlm, made)[0])


def test_one_prompt_as_in_a_batch() -> None:
    vlm, together = model(), prompt_embeds(model(), batch())
    (alone,) = prompt_embeds(vlm, processor()(images=images(1), text=PROMPTS[0], return_tensors="pt"))
    assert torch.allclose(alone, together[0], atol=1e-4)
    (text,) = prompt_embeds(vlm, processor()(text=PROMPTS[2], return_tensors="pt"))
    assert torch.equal(text, together[2])


def test_they_give_the_language_models_answer() -> None:
    vlm, made = model(), processor()(images=images(1), text=PROMPTS[0], return_tensors="pt")
    (row,) = prompt_embeds(vlm, made)
    never = [vlm.config.image_token_id]
    options: dict[str, Any] = {"max_new_tokens": 5, "do_sample": False, "suppress_tokens": never}
    whole = vlm.generate(**made, **options)[0, made["input_ids"].shape[1] :]
    assert vlm.language_model.generate(inputs_embeds=row[None], **options)[0].tolist() == whole.tolist()


def test_the_models_dtype() -> None:
    vlm = model(llama().to(torch.bfloat16))
    assert {row.dtype for row in prompt_embeds(vlm, batch())} == {torch.bfloat16}


def test_refusals() -> None:
    made = batch()
    with pytest.raises(ValueError, match=r"image 0 has .* features, but row 0 has room for"):
        prompt_embeds(model(), {**made, "num_image_tokens": made["num_image_tokens"].flip(0)})
    one = processor()(images=images(1), text=PROMPTS[0], return_tensors="pt")
    packed = DoveDataCollator(processor().tokenizer, packed=True)([one, one])
    with pytest.raises(ValueError, match="packed prompts cannot be told apart"):
        prompt_embeds(model(), packed)
