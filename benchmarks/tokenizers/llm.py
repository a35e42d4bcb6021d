"""A language model that reads the tokens: the prefill of a Llama behind a two-layer connector.

On a GPU it has the shape of Vicuna-7B, the paper's language model; on a CPU that of a 135 M Llama, in which
the language model's share of the time is smaller than the paper's.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from dove_ext import DoveTokens

TEXT_TOKENS = 64  # a question with its system prompt
SHAPES: dict[str, dict[str, int]] = {
    "cuda": {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
             "num_attention_heads": 32, "num_key_value_heads": 32, "vocab_size": 32000},
    "cpu": {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
            "num_attention_heads": 9, "num_key_value_heads": 3, "vocab_size": 49152},
}  # fmt: skip


CODES = 8192  # of the peers' codebooks, whose indices the language model looks up


class Prefill(nn.Module):
    """Logits of the next word from image tokens and a text, with random weights."""

    def __init__(self, width: int, shape: dict[str, Any]) -> None:
        super().__init__()
        import transformers

        hidden = shape["hidden_size"]
        self.connector = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, hidden))
        self.codes = nn.Embedding(CODES, width)
        self.llama = transformers.LlamaForCausalLM(transformers.LlamaConfig(**shape))
        self.text: Tensor
        self.register_buffer("text", torch.arange(1, TEXT_TOKENS + 1))

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits [B, 1, V] of image tokens [B, n, width]."""
        return self._read(tokens).logits

    def first_words(self, tokens: Tensor | DoveTokens) -> tuple[list[int], int, list[int]]:
        """The word that follows each image and its text, the bytes of all keys and values, and image tokens.

        Args:
            tokens: codes int64 [B, n]; or tokens of unequal numbers, which are read image by image, so that
                nothing is padded.
        """
        if isinstance(tokens, Tensor):
            return *self._first(self.codes(tokens)), [tokens.shape[1]] * tokens.shape[0]
        words, size = [], 0
        for image in tokens:
            found, more = self._first(image.tokens[None])
            words, size = words + found, size + more
        return words, size, tokens.lengths.tolist()

    def _read(self, tokens: Tensor) -> Any:
        text = self.llama.get_input_embeddings()(self.text).expand(tokens.shape[0], -1, -1)
        inputs = torch.cat([self.connector(tokens), text], dim=1)
        return self.llama(inputs_embeds=inputs, use_cache=True, logits_to_keep=1)

    def _first(self, tokens: Tensor) -> tuple[list[int], int]:
        read = self._read(tokens)
        cache = read.cache if "cache" in read else read.past_key_values  # before transformers 5.24
        kept = [x for layer in cache.layers for x in (layer.keys, layer.values)]
        words: list[int] = read.logits[:, -1].argmax(-1).tolist()
        return words, sum(x.numel() * x.element_size() for x in kept)
