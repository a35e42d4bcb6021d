"""A vision-language model small enough for a test: a micro encoder, two layers of Llama, 40 words."""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from dove_ext.models.dove import DoveModel
from dove_vlm import DoveImageProcessor, DoveLlavaForConditionalGeneration, DoveLlavaProcessor
from tests.models.micro import micro, photos, stop_at_share

_TEXT = """
<pad> <s> </s> <unk> what is this ? a an the red circle blue square yes no in picture left of how many cups
dog cat on table and where it there are two three four five : ASSISTANT: USER:
"""
WORDS = _TEXT.split()
PROMPTS = ["<s> what is this <image> ?", "<s> <image> is left of <image> ?", "<s> how many cups are there ?"]


def tokenizer() -> PreTrainedTokenizerFast:
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=words,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        padding_side="left",
    )


@cache
def encoder() -> DoveModel:
    """Its 64 tokens end where the image says."""
    return stop_at_share(micro())


def llama(**changes: Any) -> LlamaForCausalLM:
    """With weights so large that its answers depend on all they read."""
    torch.manual_seed(7)
    shape = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = LlamaConfig(
        **{
            "vocab_size": len(WORDS),
            "num_key_value_heads": 2,
            "initializer_range": 0.3,
            "pad_token_id": 0,
            **shape,
            **changes,
        }
    )
    return LlamaForCausalLM(config).eval()


TEMPLATE = (
    "{% for m in messages %}<s> {% for c in m.content %}"
    "{% if c.type == 'image' %}<image> {% else %}{{ c.text }}{% endif %}{% endfor %}{% endfor %}"
)


def processor(**settings: Any) -> DoveLlavaProcessor:
    return DoveLlavaProcessor(DoveImageProcessor(encoder(), **settings), tokenizer())


def model(
    language_model: Any = None, dove: DoveModel | None = None, **config: Any
) -> DoveLlavaForConditionalGeneration:
    made = DoveLlavaForConditionalGeneration.from_vision_text_pretrained(
        dove or copy.deepcopy(encoder()), language_model or llama(), image_token_id=len(WORDS), **config
    )
    torch.manual_seed(5)
    for linear in (made.multi_modal_projector.linear_1, made.multi_modal_projector.linear_2):
        torch.nn.init.normal_(linear.weight, std=0.3)
    made.generation_config.eos_token_id = None  # all answers have the same length
    return made


def images(count: int) -> list[torch.Tensor]:
    """Tensors uint8 [3, 32, 32]."""
    return list(photos(count))


def batch(made: DoveLlavaProcessor | None = None, **options: Any) -> Any:
    """`PROMPTS` with three images: one, two, none."""
    first, second, third = images(3)
    return (made or processor())(
        images=[[first], [second, third], []], text=PROMPTS, padding=True, return_tensors="pt", **options
    )
