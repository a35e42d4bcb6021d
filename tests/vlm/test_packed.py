"""Prompts of one row, without padding between encoder and language model, do not see one another."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from dove_vlm import DoveDataCollator
from tests.vlm.small import PROMPTS, encoder, images, model, processor


def single(made: Any = None) -> list[Any]:
    """The three prompts on their own."""
    made = made or processor()
    a, b, c = images(3)
    return [
        made(images=pictures or None, text=text, return_tensors="pt")
        for text, pictures in zip(PROMPTS, ([a], [b, c], []), strict=True)
    ]


def test_a_packed_row_is_its_prompts_one_after_the_other() -> None:
    rows = single()
    packed = DoveDataCollator(processor().tokenizer, packed=True)(rows)
    assert packed["input_ids"].shape == (1, sum(row["input_ids"].shape[1] for row in rows))
    assert "attention_mask" not in packed and "labels" not in packed
    assert packed["cu_seq_lens_q"].tolist()[-1] == packed["input_ids"].shape[1]
    # The images' side of it is what the library's container holds already.
    tokens = encoder().encode(images(3), fit="pad")
    assert torch.allclose(packed["image_tokens"], tokens.tokens, atol=1e-5)
    assert packed["num_image_tokens"].cumsum(0).tolist() == tokens.cu_seqlens[1:].tolist()


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("training", [True, False])
def test_packed_rows_equal_single_ones(attention: str, training: bool) -> None:
    """With its cache on, as it is by default, transformers would let them see one another."""
    vlm = model().train(training)
    vlm.set_attn_implementation(attention)
    packed = DoveDataCollator(processor().tokenizer, packed=True)(single())
    together = vlm(**packed).logits[0]
    alone = torch.cat([vlm(**row).logits[0] for row in single()])
    assert torch.allclose(together, alone, atol=1e-3)
    # Tokens straight from the encoder, as it packs them.
    text = {k: v for k, v in packed.items() if k not in ("image_tokens", "num_image_tokens")}
    tokens = encoder().encode(images(3), fit="pad")
    assert torch.allclose(vlm(**text, image_tokens=tokens).logits[0], alone, atol=1e-3)


def test_a_cache_of_packed_rows_is_refused() -> None:
    packed = DoveDataCollator(processor().tokenizer, packed=True)(single())
    with pytest.raises(ValueError, match="packed rows have no cache"):
        model()(**packed, use_cache=True)


def test_labels_packed_and_padded() -> None:
    vlm, made = model(), processor()
    made.tokenizer.padding_side = "right"
    rows = [{**row, "labels": row["input_ids"].clone()} for row in single(made)]
    for row in rows:
        row["labels"][:, :2] = -100
    packed = DoveDataCollator(made.tokenizer, packed=True)(rows)
    padded = DoveDataCollator(made.tokenizer)(rows)
    assert (
        padded["input_ids"].shape[0] == 3 and padded["attention_mask"].sum() == packed["input_ids"].shape[1]
    )
    assert (padded["labels"] != -100).sum() == (packed["labels"] != -100).sum()
    assert torch.allclose(vlm(**packed).loss, vlm(**padded).loss, atol=1e-4)


@pytest.mark.parametrize("packed", [True, False])
def test_a_prompt_without_labels_is_not_learned(packed: bool) -> None:
    made = processor()
    made.tokenizer.padding_side = "right"
    rows = single(made)[:2]
    learned = {**rows[1], "labels": rows[1]["input_ids"].clone()}
    for order in ([rows[0], learned], [learned, rows[0]]):
        labels = DoveDataCollator(made.tokenizer, packed=packed)(order)["labels"]
        # Of each packed prompt the first word is behind another one's.
        assert int((labels != -100).sum()) == rows[1]["input_ids"].shape[1] - packed


def test_several_rows_are_not_one_prompt() -> None:
    made = processor()
    rows = made(images=images(2), text=[PROMPTS[0]] * 2, padding=True, return_tensors="pt")
    for packed in (True, False):
        with pytest.raises(ValueError, match="one prompt's features are 2 rows"):
            DoveDataCollator(made.tokenizer, packed=packed)([rows])


def test_mixed_kinds_are_refused() -> None:
    made = processor()
    pixels = made(images=images(1), text=PROMPTS[0], return_tensors="pt", return_pixel_values=True)
    with pytest.raises(ValueError, match="some prompts have image_tokens, others pixel_values"):
        DoveDataCollator(made.tokenizer)([*single(), pixels])
    with pytest.raises(ValueError, match="some prompts have image_tokens, others pixel_values"):
        DoveDataCollator(made.tokenizer, packed=True)([pixels, *single()])
