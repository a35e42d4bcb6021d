"""Models as `save_pretrained` leaves them, engines that serve them, and what transformers answers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

import dove_vlm
from dove_ext.models.dove import DoveModel
from tests.vlm.small import TEMPLATE, WORDS, llama, model, tokenizer

PHOTOS = Path(__file__).parents[2] / "examples" / "photos"
WORDS_OF_AN_ANSWER = 6
ONE = "<s> what is this <image> ?"
TWO = "<s> <image> is left of <image> ?"
NONE = "<s> how many cups are there ?"
WRONG: list[tuple[dict[str, Any], str]] = [
    ({"num_tokens": 0}, "num_tokens must be between 1 and 256, got 0"),
    ({"num_tokens": 3, "max_tokens": 3}, "num_tokens decides the lengths"),
    ({"eos_threshold": "low"}, "eos_threshold must be a number"),
    ({"token_budget": 9}, "token_budget is for all images of a call"),
    ({"size": 3}, "an image has no option 'size' here"),
    ({"device": "cpu"}, "an image has no option 'device' here"),
    ({"fit": "stretch"}, "fit must be one of"),
    ({"drop_empty": True}, "drop_empty leaves out tiles; give tiles"),
    ({"tiles": 0}, "tiles must be a whole number from 1 to 4096"),
]
"""What a request may not ask of a picture, whoever asks which model, and what it is told."""

SHAPE = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32}
"""Of `small.llama`, with heads that vLLM has kernels for."""


def save(folder: Path, encoder: str, language_model: Any = None, **config: Any) -> Path:
    """A model and its processor in one folder; it never says the image token."""
    processor = dove_vlm.DoveLlavaProcessor(
        dove_vlm.DoveImageProcessor(encoder), tokenizer(), chat_template=TEMPLATE
    )
    vlm = model(language_model or llama(**SHAPE), DoveModel.from_pretrained(encoder), **config)
    assert processor.image_token_id == len(WORDS)
    with torch.no_grad():
        vlm.get_output_embeddings().weight[processor.image_token_id] = 0
    vlm.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@cache
def pictures() -> list[Image.Image]:
    """Pieces of the photographs of examples/, 64 pixels wide: twelve, from flat to full; then `TILED`."""
    found = []
    for path in sorted(PHOTOS.glob("*.jpg")):
        photo = Image.open(path).convert("RGB")
        for size in (64, 160, 400):
            found.append(photo.crop((40, 40, 40 + size, 40 + size)).resize((64, 64)))
    shapes = (500, 256), (480, 400), (64, 64)  # two tiles and a thumbnail, four and one, one
    return [*found[:12], *(photo.resize(shape) for shape in shapes), found[4].resize(shapes[0])]


TILED = (12, 13, 14, 15)
"""Numbers of pictures of several shapes; the last is of the first's."""


@dataclass(frozen=True)
class Case:
    """A request: a prompt, its pictures, by their numbers, and what it asks of them."""

    text: str
    images: tuple[int, ...] = ()
    options: tuple[tuple[str, Any], ...] = field(default=())

    def for_vllm(self) -> dict[str, Any]:
        prompt: dict[str, Any] = {"prompt": self.text}
        if self.images:
            prompt["multi_modal_data"] = {"image": [pictures()[i] for i in self.images]}
        if self.options:
            prompt["mm_processor_kwargs"] = dict(self.options)
        return prompt


@dataclass(frozen=True)
class Answer:
    """Tokens of a prompt with its images, and of the answer to it."""

    prompt: list[int]
    words: list[int]


class Reference:
    """The same folder in transformers, one prompt at a time."""

    def __init__(self, folder: Path) -> None:
        self.processor = AutoProcessor.from_pretrained(folder)
        self.model = AutoModelForImageTextToText.from_pretrained(folder)
        self.model.generation_config.eos_token_id = None
        self._known: dict[str, Answer] = {}

    def __call__(self, case: Case) -> Answer:
        key = repr(case)  # options may hold tables
        if key not in self._known:
            made = self.made(case)
            out = self.model.generate(**made, max_new_tokens=WORDS_OF_AN_ANSWER, do_sample=False)[0].tolist()
            prompt = made["input_ids"][0].tolist()
            self._known[key] = Answer(prompt, out[len(prompt) :])
        return self._known[key]

    def made(self, case: Case) -> Any:
        """What its processor makes of a request."""
        images = [pictures()[i] for i in case.images] or None
        return self.processor(images=images, text=case.text, return_tensors="pt", **dict(case.options))


@contextmanager
def engine(folder: Path, **options: Any) -> Iterator[Any]:
    """A `vllm.LLM`, its engine in a process of its own."""
    from vllm import LLM

    llm = LLM(
        str(folder),
        **{
            "dtype": "float32",
            "max_model_len": 1024,
            "max_num_seqs": 8,
            "enforce_eager": True,
            "limit_mm_per_prompt": {"image": 3},
            "seed": 0,
            "disable_log_stats": False,
            **options,
        },
    )
    try:
        yield llm
    finally:
        llm.llm_engine.engine_core.shutdown()


def ask(llm: Any, cases: list[Case]) -> list[Answer]:
    """Greedy answers of vLLM to all at once, in order."""
    from vllm import SamplingParams

    sampling = SamplingParams(temperature=0, max_tokens=WORDS_OF_AN_ANSWER, ignore_eos=True)
    outputs = llm.generate([case.for_vllm() for case in cases], sampling, use_tqdm=False)
    return [Answer(list(one.prompt_token_ids), list(one.outputs[0].token_ids)) for one in outputs]
