"""A photograph, a question, and the shape of an answer: DOVE tokens in a language model of transformers.

    pip install -e '.[vlm]'
    python examples/vlm.py examples/photos/cat.jpg --question "What is on the sofa?" -o out/vlm

The language model is small and random unless you name a folder or hub id (--language-model), and so is the
connector: the answer means nothing before it is trained. The folder of -o holds all of it, and is loaded from
there.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
    ByT5Tokenizer,
    LlamaConfig,
)

from dove_vlm import DoveImageProcessor, DoveLlavaForConditionalGeneration, DoveLlavaProcessor


def language_model(name: str | None) -> tuple[Any, Any]:
    """A tokenizer and a causal language model: those of this name, or bytes and two layers of Llama."""
    if name is not None:
        return AutoTokenizer.from_pretrained(name), AutoModelForCausalLM.from_pretrained(name)
    torch.manual_seed(0)
    tokenizer = ByT5Tokenizer()  # bytes: it needs no files
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    return tokenizer, AutoModelForCausalLM.from_config(config)


def main() -> None:
    """Put the parts together, save them, load them, ask."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("photo", type=Path)
    parser.add_argument("--question", default="What is this?")
    parser.add_argument("--language-model", metavar="NAME", help="folder or hub id (default: a random one)")
    parser.add_argument("--max-tokens", type=int, help="the most tokens of the photograph")
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder of the whole model")
    args = parser.parse_args()

    tokenizer, text = language_model(args.language_model)
    processor = DoveLlavaProcessor(DoveImageProcessor("dove-tiny"), tokenizer)
    model = DoveLlavaForConditionalGeneration.from_vision_text_pretrained(
        "dove-tiny", text, image_token_id=processor.image_token_id
    )
    model.save_pretrained(args.output)
    processor.save_pretrained(args.output)

    processor = AutoProcessor.from_pretrained(args.output)
    model = AutoModelForImageTextToText.from_pretrained(args.output)
    inputs = processor(
        images=args.photo,
        text=f"<image>\n{args.question}",
        max_tokens=args.max_tokens,
        return_tensors="pt",
    )
    answer = model.generate(**inputs, max_new_tokens=16)
    print(
        f"{args.photo.name}: {inputs['num_image_tokens'].item()} tokens of {inputs['image_tokens'].shape[1]}"
    )
    print(f"prompt {list(inputs['input_ids'].shape)}, with the answer {list(answer.shape)}")
    print(repr(processor.decode(answer[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)))


if __name__ == "__main__":
    main()
