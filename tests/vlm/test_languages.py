"""Any causal language model of transformers: positions of all kinds, heads of their own, tied weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

from dove_vlm import DoveDataCollator
from tests.vlm.small import WORDS, batch, images, model, processor

SMALL: dict[str, dict[str, Any]] = {
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 2},  # learned positions, tied
    "gpt_neox": {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    },
    "gemma2": {  # scaled embeddings, bounded logits, a window in every other layer
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 16,
        "final_logit_softcapping": 3.0,
    },
    "bloom": {"hidden_size": 32, "n_layer": 2, "n_head": 2},  # ALiBi: it takes no positions
    "qwen2": {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
    },
    "phi": {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    },  # biased head
}


@pytest.mark.parametrize("kind", SMALL)
def test_language_models(kind: str, tmp_path: Path) -> None:
    torch.manual_seed(3)
    config = AutoConfig.for_model(
        kind,
        vocab_size=len(WORDS),
        initializer_range=0.3,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        **SMALL[kind],
    )
    vlm = model(AutoModelForCausalLM.from_config(config).eval())
    made = batch()
    out = vlm.generate(**made, max_new_tokens=4, do_sample=False)[:, -4:]
    picture = processor()(images=images(1), text=["<s> what is this <image> ?"], return_tensors="pt")
    assert vlm.generate(**picture, max_new_tokens=4, do_sample=False)[0, -4:].tolist() == out[0].tolist()
    rows = DoveDataCollator(processor().tokenizer, packed=True)([picture, picture])
    if kind == "bloom":
        with pytest.raises(ValueError, match="takes no position_ids, so packed rows would see one another"):
            vlm(**rows)
    else:
        assert torch.allclose(vlm(**rows).logits[0], vlm(**picture).logits[0].repeat(2, 1), atol=1e-3)
    logits = vlm(**made).logits
    if kind == "gemma2":
        assert logits.abs().max() <= 3.0
    vlm.save_pretrained(tmp_path)
    again = AutoModelForImageTextToText.from_pretrained(tmp_path)
    assert torch.equal(again(**made).logits, logits)
