"""A language model that reads the tokens: the prefill of a Llama behind a two-layer connector.

On a GPU it has the shape of Vicuna-7B, the paper's language model; on a CPU that of a 135 M Llama, in which
the language model's share of the time is smaller than the paper's.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

TEXT_TOKENS = 64  # a question with its system prompt
SHAPES: dict[str, dict[str, int]] = {
    "cuda": {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
             "num_attention_heads": 32, "num_key_value_heads": 32, "vocab_size": 32000},
    "cpu": {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
            "num_attention_heads": 9, "num_key_value_heads": 3, "vocab_size": 49152},
}  # fmt: skip


class Prefill(nn.Module):
    """Logits of the next word from image tokens and a text, with random weights."""

    def __init__(self, width: int, shape: dict[str, Any]) -> None:
        super().__init__()
        import transformers

        hidden = shape["hidden_size"]
        self.connector = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, hidden))
        self.llama = transformers.LlamaForCausalLM(transformers.LlamaConfig(**shape))
        self.text: Tensor
        self.register_buffer("text", torch.arange(1, TEXT_TOKENS + 1))

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits [B, 1, V] of image tokens [B, n, width]."""
        text = self.llama.get_input_embeddings()(self.text).expand(tokens.shape[0], -1, -1)
        inputs = torch.cat([self.connector(tokens), text], dim=1)
        return self.llama(inputs_embeds=inputs, use_cache=True, logits_to_keep=1).logits
