"""Several prompts with images as one batch: padded, or packed into one row without any padding."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import DataCollatorForSeq2Seq, DataCollatorWithFlattening

LEARN_NOT = -100
"""The label of positions that are not learned, as everywhere in transformers."""


class DoveDataCollator:
    """Joins what `DoveLlavaProcessor` makes of single prompts, for `Trainer`, a `DataLoader`, or a call.

    Images' tokens are joined as they lie, one after the other, in either case; a `DoveTokens` of all images
    gives the same.

    Args:
        tokenizer: the processor's; it pads on its `padding_side`.
        packed: all prompts in one row, with `position_ids` that restart and the `cu_seq_lens_q` that
            attention of variable length reads; the default pads.
    """

    def __init__(self, tokenizer: Any, *, packed: bool = False) -> None:
        self.packed = packed
        self._text = (
            DataCollatorWithFlattening(return_flash_attn_kwargs=True)
            if packed
            else DataCollatorForSeq2Seq(tokenizer, label_pad_token_id=LEARN_NOT)
        )

    def __call__(self, features: Sequence[Any]) -> dict[str, Any]:
        """The batch.

        Args:
            features: of one prompt each, `input_ids` [L] or [1, L] and, where there is something to learn,
                `labels` likewise; for its images `image_tokens` or `pixel_values`, `num_image_tokens`, and of
                tiles `image_tile_ends`; none of these where it has none.

        Returns:
            dict: tensors, with the names of `DoveLlavaForConditionalGeneration.forward`.

        Raises:
            ValueError: if one prompt has tokens of images and another pictures, or one is several rows.
        """
        names = ("input_ids", "labels") if self.packed else ("input_ids", "attention_mask", "labels")
        text = [{name: _row(one[name]) for name in names if name in one} for one in features]
        learned = any("labels" in one for one in text)
        if learned:  # transformers would learn the prompts without, or nothing at all
            text = [{"labels": [LEARN_NOT] * len(one["input_ids"]), **one} for one in text]
        batch = dict(self._text(text, return_tensors="pt"))
        if not learned:
            batch.pop("labels", None)  # transformers would learn the prompt
        kinds = [name for name in ("image_tokens", "pixel_values") if any(name in one for one in features)]
        if len(kinds) == 2:
            raise ValueError(
                "some prompts have image_tokens, others pixel_values; process all in the same way"
            )
        if kinds:
            batch[kinds[0]] = torch.cat([one[kinds[0]] for one in features if kinds[0] in one])
            counts = [torch.as_tensor(one["num_image_tokens"]) for one in features if kinds[0] in one]
            batch["num_image_tokens"] = torch.cat(counts)
        if any("image_tile_ends" in one for one in features):
            batch["image_tile_ends"] = torch.cat([_ends(one) for one in features if kinds[0] in one])
        return batch


def _ends(one: Any) -> Tensor:
    whole = torch.zeros(int(torch.as_tensor(one["num_image_tokens"]).sum()), dtype=torch.int8)
    return torch.as_tensor(one.get("image_tile_ends", whole))


def _row(values: Any) -> list[int]:
    rows = values.tolist() if isinstance(values, Tensor) else values
    if len(rows) > 1 and isinstance(rows[0], list):
        raise ValueError(
            f"one prompt's features are {len(rows)} rows; collate prompts that are processed singly"
        )
    if isinstance(values, Tensor):
        return values.flatten().tolist()
    return list(values[0]) if len(values) == 1 and isinstance(values[0], list) else list(values)
