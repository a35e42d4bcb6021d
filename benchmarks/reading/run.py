"""Train one small language model on one system's tokens, and ask it the test questions."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel

from dove_ext.atomic import atomic_write
from dove_ext.tokens import DoveTokens
from dove_ext.tokens.indexing import cumulate
from dove_instruct.conversations import PLACE, Conversation
from dove_instruct.prompts import WORDING
from dove_instruct.run import Run
from dove_instruct.settings import Settings
from dove_train.distributed import World
from dove_vlm.benchmarks.metrics import exact_match

from .store import AtLeast, Count, Store
from .systems import key

OWN = "own"
MOST = 256  # tokens of a picture
ASK = 64  # questions at once


class GridConfig(PreTrainedConfig):
    """Of a `GridTower`."""

    model_type = "reading_grid"
    hidden_size: int = 768
    image_size: int = 256


class GridTower(PreTrainedModel):
    """Stands where `DoveVisionModel` stands: tokens of any encoder, which lie in a `Store`."""

    config_class = GridConfig

    def __init__(self, config: GridConfig) -> None:
        super().__init__(config)
        self.dove = nn.Identity()
        self.post_init()


AutoConfig.register("reading_grid", GridConfig)
AutoModel.register(GridConfig, GridTower)


class ReadingRun(Run):
    """`dove vlm train`, with tokens from a store.

    Args:
        settings: of the run.
        folder: where it lies.
        world: its process.
        root: the folder of the data, which images' names in the store are relative to.
        store: the tokens; None: the question alone.
        counts: how many tokens a picture has, drawn anew for each row; None among them: its own length.
        asked: whether the store has tokens for each question.
    """

    def __init__(
        self,
        settings: Settings,
        folder: Path,
        world: World,
        *,
        root: Path,
        store: Store | None,
        counts: Sequence[Count] = (None,),
        asked: bool = False,
    ) -> None:
        self.root, self.store, self.asked = root, store, asked
        self._counts, self._random = counts, np.random.default_rng((settings.seed, 31))
        vision = GridTower(GridConfig(hidden_size=1 if store is None else store.width))
        super().__init__(settings, folder, world, vision)
        if store is None or asked:
            change = _alone if store is None else _singles
            self.conversations = [new for row in self.conversations for new in change(row)]
            self.rows.conversations = self.conversations
        self.cache = self._tokens
        self.rows.ask = asked

    def take_step(self) -> dict[str, float]:
        """As usual; the numbers of tokens follow from the step alone, so that a stopped run goes on."""
        self._random = np.random.default_rng((self.settings.seed, 31, self.step))
        return super().take_step()

    def _tokens(self, images: Sequence[Path], query: str | None = None) -> DoveTokens:
        assert self.store is not None
        count = self._counts[int(self._random.integers(len(self._counts)))]
        parts = [self.store.tokens(self.name(image, query or ""), count) for image in images]
        ends = cumulate(torch.tensor([len(part) for part in parts]))
        return DoveTokens(torch.cat(parts), ends, num_slots=MOST)

    def name(self, image: Path | str, question: str) -> str:
        """What the store calls tokens of a picture, or of a question about it."""
        name = str(Path(self.root, image).relative_to(self.root))
        return key(name, question) if self.asked else name

    # --- Answers --------------------------------------------------------------------------------------

    @torch.inference_mode()
    def answer(self, rows: Sequence[dict[str, str]], count: Count) -> tuple[list[str], float]:
        """Greedy answers to questions, and how many tokens a picture had on average."""
        self.model.eval()
        said: dict[int, str] = {}
        used = 0
        sizes = [0 if self.store is None else self._length(row, count) for row in rows]
        order = sorted(range(len(rows)), key=sizes.__getitem__)  # rows of a batch are about equally long
        for start in range(0, len(rows), ASK):
            part = order[start : start + ASK]
            texts, used = self._generate([rows[i] for i in part], count), used + sum(sizes[i] for i in part)
            said |= dict(zip(part, texts, strict=True))
        return [said[i] for i in range(len(rows))], used / len(rows)

    def _length(self, row: dict[str, str], count: Count) -> int:
        assert self.store is not None
        return self.store.length(self.name(row["image"], row["question"]), count)

    def _generate(self, rows: Sequence[dict[str, str]], count: Count) -> list[str]:
        tokens = [
            self.store.tokens(self.name(row["image"], row["question"]), count)
            for row in rows
            if self.store is not None
        ]
        return self.generate(self.inputs([row["question"] for row in rows], tokens))

    def inputs(self, questions: Sequence[str], tokens: Sequence[Tensor]) -> dict[str, Tensor]:
        """What the model takes for questions, each about a picture of such tokens [n, D]; none: without."""
        system, user, assistant, _ = WORDING[self.settings.template]
        places = [self.processor.image_token * len(part) + "\n" for part in tokens] or [""] * len(questions)
        prompts = [
            system + user + place + text + assistant for place, text in zip(places, questions, strict=True)
        ]
        tokenizer = self.processor.tokenizer
        tokenizer.padding_side = "left"
        inputs = dict(tokenizer(prompts, return_tensors="pt", padding=True))
        inputs.pop("token_type_ids", None)
        tokenizer.padding_side = "right"
        if tokens:
            inputs["image_tokens"] = torch.cat(list(tokens))
            inputs["num_image_tokens"] = torch.tensor([len(part) for part in tokens])
        return inputs

    def generate(self, inputs: dict[str, Tensor]) -> list[str]:
        """Greedy answers."""
        made = self.model.generate(**inputs, do_sample=False, max_new_tokens=8)
        behind = inputs["input_ids"].shape[1]
        found = self.processor.tokenizer.batch_decode(made[:, behind:], skip_special_tokens=True)
        return [text.strip() for text in found]


def _alone(row: Conversation) -> list[Conversation]:
    turns = tuple((question.replace(PLACE, "").strip(), answer) for question, answer in row.turns)
    return [dataclasses.replace(row, images=(), turns=turns)]


def _singles(row: Conversation) -> list[Conversation]:
    """A row a question: its tokens are this question's."""
    return [
        dataclasses.replace(row, turns=((f"{PLACE}\n{question.replace(PLACE, '').strip()}", answer),))
        for question, answer in row.turns
    ]


def label(count: Count) -> int | str:
    """A number of tokens in the table."""
    return OWN if count is None else str(count) if isinstance(count, AtLeast) else count


def evaluate(
    run: ReadingRun, rows: Sequence[dict[str, str]], count: Count, path: Path, facts: dict[str, Any]
) -> dict[str, Any]:
    """Ask all questions and write the result."""
    since = time.process_time()
    said, tokens = run.answer(rows, count)
    right: dict[str, list[float]] = {}
    for row, text in zip(rows, said, strict=True):
        right.setdefault(row["kind"], []).append(exact_match(text, row["answer"]))
    every = [score for scores in right.values() for score in scores]
    result = {
        **facts,
        "count": label(count),
        "tokens": tokens,
        "accuracy": 100 * sum(every) / len(every),
        "kinds": {kind: 100 * sum(scores) / len(scores) for kind, scores in sorted(right.items())},
        "questions": len(every),
        "seconds": time.process_time() - since,
    }
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(result) + "\n", encoding="utf-8")
    return result
