"""Prompts with pictures for a server that knows only the language model, as rows of its own width."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from dove_vlm.features import put_in_place
from dove_vlm.modeling import DoveLlavaForConditionalGeneration
from dove_vlm.placeholders import check_places

IMAGES = ("pixel_values", "image_tokens", "image_tile_ends")


@torch.no_grad()
def prompt_embeds(model: DoveLlavaForConditionalGeneration, inputs: Mapping[str, Any]) -> list[Tensor]:
    """What the language model reads of prompts: rows of words and images, in order.

    A server of the language model alone (`model.language_model.save_pretrained`) answers them as the whole
    model would; vLLM takes such rows as `prompt_embeds`.

    Args:
        model: whose connector and embeddings are used, where they are.
        inputs: of its processor, with `return_tensors="pt"`; of one prompt or several, padded or not.

    Returns:
        list[Tensor]: [L_i, hidden] of each prompt, without its padding, in the model's dtype and on its
            device.

    Raises:
        ValueError: as the model, if images do not fit where they belong; or for rows that are packed.
    """
    ids, mask = inputs["input_ids"].to(model.device), inputs.get("attention_mask")
    if "position_ids" in inputs:
        raise ValueError("packed prompts cannot be told apart here; pass what the processor returned")
    rows = model.get_input_embeddings()(ids)
    images = {name: inputs[name] for name in IMAGES if name in inputs}
    if images:
        places = ids == model.config.image_token_id
        images = {name: value.to(model.device) for name, value in images.items()}
        features = model.get_image_features(
            **images, num_image_tokens=inputs["num_image_tokens"]
        ).pooler_output
        check_places(places, [len(part) for part in features])
        rows = put_in_place(rows, places, features)
    if mask is None:
        return list(rows)
    return [row[kept] for row, kept in zip(rows, mask.to(model.device).bool(), strict=True)]
