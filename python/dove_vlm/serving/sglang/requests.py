"""Requests to SGLang whose pictures a client has encoded: rows as the language model reads them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from dove_vlm.modeling import DoveLlavaForConditionalGeneration
from dove_vlm.placeholders import check_places
from dove_vlm.serving.prompt_embeds import IMAGES


@torch.no_grad()
def precomputed_embedding(
    model: DoveLlavaForConditionalGeneration, inputs: Mapping[str, Any]
) -> dict[str, Any]:
    """A request's prompt and pictures, for `sglang.Engine.generate(**request)`, or as JSON for `/generate`.

    Over HTTP rows are numbers: `feature.tolist()`. SGLang takes one such item a request, so it holds the rows
    of all its pictures.

    Args:
        model: whose connector is used, where it is.
        inputs: of its processor for one prompt, with `return_tensors="pt"`.

    Returns:
        dict: `input_ids`, list of int; and where there are pictures `image_data`: one item with `feature`
        float32 [P, hidden] on the CPU, a row for each placeholder, and `counts`, how many of each picture.

    Raises:
        ValueError: as the model, if pictures do not fit where they belong; or for several prompts.
    """
    ids = inputs["input_ids"]
    if len(ids) != 1 or "position_ids" in inputs:
        raise ValueError(f"a request has one prompt, got {len(ids)} rows; call the processor once for each")
    if "attention_mask" in inputs:
        ids = ids[:, inputs["attention_mask"][0].bool()]
    request: dict[str, Any] = {"input_ids": ids[0].tolist()}
    images = {name: inputs[name].to(model.device) for name in IMAGES if name in inputs}
    if images:
        features = model.get_image_features(**images, num_image_tokens=inputs["num_image_tokens"])
        counts = [len(part) for part in features.pooler_output]
        check_places(ids == model.config.image_token_id, counts)
        rows = torch.cat(features.pooler_output).float().cpu()
        request["image_data"] = [{"format": "precomputed_embedding", "feature": rows, "counts": counts}]
    return request
