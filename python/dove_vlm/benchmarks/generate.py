"""A vision-language model of transformers that answers records: greedy, in batches, padded on the left."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from dove_ext.errors import DoveError, QueryError
from dove_vlm.benchmarks.records import BenchmarkError, Record
from dove_vlm.benchmarks.registry import Benchmark

QUESTION, NULL = "question", "null"


def load(folder: str | os.PathLike[str], device: str = "cpu", dtype: str = "auto") -> tuple[Any, Any]:
    """A processor and a model, ready to answer.

    Args:
        folder: what `dove vlm train` or `save_pretrained` wrote, or a hub id.
        device: where both work, a `dove_vlm` processor's encoder included.
        dtype: the language model's, such as "bfloat16"; "auto": as it was saved.

    Raises:
        BenchmarkError: if there is no such model.
    """
    from huggingface_hub import snapshot_download
    from transformers import AutoModelForImageTextToText, AutoProcessor

    try:
        if not Path(folder).is_dir():  # without a network, transformers looks minutes for a processor's files
            snapshot_download(str(folder), allow_patterns=["config.json"])
        processor = AutoProcessor.from_pretrained(folder)
        model = AutoModelForImageTextToText.from_pretrained(folder, dtype=dtype)
    except (OSError, ValueError, SafetensorError) as error:
        reason = str(error).strip().splitlines()[0]
        raise BenchmarkError(
            f"{str(folder)!r} holds no vision-language model with its processor ({reason}); give a folder "
            "that `dove vlm train` wrote"
        ) from error
    encoder = getattr(processor.image_processor, "encoder", None)
    if encoder is not None:
        encoder.to(device)
    return processor, model.to(device).eval()


class Model:
    """A processor and a model as one function, which counts image tokens.

    Args:
        processor: of the Auto classes; its tokenizer is padded on the left from now on.
        model: likewise, in evaluation mode.
        num_tokens: exactly so many tokens an image (a `dove_vlm` processor); None: the model's own lengths.

    Attributes:
        counted: how many tokens each image had that was seen so far.
    """

    def __init__(self, processor: Any, model: Any, num_tokens: int | None = None) -> None:
        self.processor, self.model, self.num_tokens = processor, model, num_tokens
        self.counted: list[int] = []
        tokenizer = processor.tokenizer
        tokenizer.padding_side = "left"
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        self._check_length()

    def _check_length(self) -> None:
        if self.num_tokens is None:
            return
        encoder = getattr(self.processor.image_processor, "encoder", None)
        if encoder is None:
            raise BenchmarkError(
                f"this model's images have a fixed number of tokens, {self.num_tokens} cannot be asked for; "
                "leave --num-tokens out"
            )
        if getattr(self.processor.image_processor, "tiles", None) is not None:
            return  # they are a picture's then, which is known with it
        most = encoder.config.num_tokens
        if not 1 <= self.num_tokens <= most:
            raise BenchmarkError(f"--num-tokens {self.num_tokens} is impossible: the model has 1 to {most}")

    @property
    def mean_tokens(self) -> float | None:
        """Tokens an image on average; None before the first image."""
        return sum(self.counted) / len(self.counted) if self.counted else None

    def check(self, text: str) -> None:
        """Refuse a question that cannot be put.

        Raises:
            BenchmarkError: if it holds the word that stands for an image.
        """
        if self.processor.image_token in text:
            raise BenchmarkError(
                f"the question {text[:60]!r} holds {self.processor.image_token}, which stands for an image; "
                "write it otherwise"
            )

    def prompt(self, text: str, images: int) -> str:
        """A question as the model was trained to read it: in its chat template, if it has one.

        Raises:
            BenchmarkError: as `check`.
        """
        self.check(text)
        if self.processor.chat_template is None:
            return f"{self.processor.image_token}\n" * images + text + "\n"
        content = [{"type": "image"}] * images + [{"type": "text", "text": text}]
        prompt: str = self.processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
        )
        return prompt

    def answer(
        self,
        texts: Sequence[str],
        images: Sequence[Sequence[Any]],
        *,
        queries: Sequence[str] | str | None = None,
        max_new_tokens: int = 16,
    ) -> list[str]:
        """Answers to questions, in order.

        Args:
            texts: questions without a place for images, which come first.
            images: pictures of each.
            queries: what the tokens are to tell of (Q-DOVE): one for all images, or one an image.
            max_new_tokens: how long an answer may be.

        Raises:
            BenchmarkError: if a question cannot be put, or the language model has too few positions for it.
        """
        import torch

        prompts = [self.prompt(text, len(row)) for text, row in zip(texts, images, strict=True)]
        wishes: dict[str, Any] = {}
        if any(images):
            wishes = {} if self.num_tokens is None else {"num_tokens": self.num_tokens}
            wishes |= {} if queries is None else {"query": queries}
        try:
            inputs = self.processor(
                images=[list(row) for row in images] if any(images) else None,
                text=prompts,
                padding=True,
                return_tensors="pt",
                **wishes,
            )
        except DoveError:
            raise
        except ValueError as error:  # such as of a number of tokens that a picture's tiles cannot have
            raise BenchmarkError(str(error)) from error
        most = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        length = inputs["input_ids"].shape[1] + max_new_tokens
        if most is not None and length > most:
            raise BenchmarkError(
                f"a question and its answer have {length} positions, the language model {most}; give images "
                "fewer tokens (--num-tokens), or ask for a shorter answer"
            )
        if "num_image_tokens" in inputs:
            self.counted += inputs["num_image_tokens"].tolist()
        inputs = inputs.to(self.model.device)
        with torch.inference_mode():
            made = self.model.generate(**inputs, do_sample=False, num_beams=1, max_new_tokens=max_new_tokens)
        said = self.processor.tokenizer.batch_decode(
            made[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True
        )
        return [text.strip() for text in said]


def check_queries(model: Model, records: Sequence[Record]) -> None:
    """Refuse, before the work, questions that a Q-DOVE encoder cannot be asked.

    Raises:
        BenchmarkError: naming the question.
    """
    tokenizer = getattr(getattr(model.processor.image_processor, "encoder", None), "tokenizer", None)
    if tokenizer is None:
        return  # an encoder without queries says so itself, with the first images
    for record in records:
        try:
            if record.image is not None:
                tokenizer([record.question])
        except QueryError as error:
            raise BenchmarkError(
                f"question {record.question_id} is no query for the encoder ({error}); use --query null"
            ) from error


def answerer(model: Model, benchmark: Benchmark, query: str | None = None) -> Any:
    """A benchmark's way to ask a model, for `evaluate`.

    Args:
        model: whom to ask.
        benchmark: whose prompt and length of answers.
        query: what a Q-DOVE encoder is asked: "question", "null" (the whole picture), or None for nothing.
    """

    def answer(records: list[Record]) -> list[str]:
        seen = [record for record in records if record.image is not None]
        queries = {None: None, NULL: NULL, QUESTION: [record.question for record in seen]}[query]
        return model.answer(
            [benchmark.prompt(record) for record in records],
            [[] if record.image is None else [record.open()] for record in records],
            queries=queries,
            max_new_tokens=benchmark.max_new_tokens,
        )

    return answer
