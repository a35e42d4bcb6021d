"""Rows in endless random order, ready for the model: row p of a seed is the same wherever it is drawn."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from dove_ext.errors import ImageError, QueryError
from dove_instruct.conversations import PLACE, Conversation
from dove_instruct.prompts import LongRowError, tokenize
from dove_train.data import SkippedImages
from dove_train.settings import TrainingError

Look = Callable[[Conversation, str | None], dict[str, Any]]
"""What there is of a row's images: `num_image_tokens`, and `image_tokens` or `pixel_values`; or nothing."""


class Rows:
    """Conversations as `input_ids`, `labels` and images; item p is a function of (seed, p) alone.

    A row with an image that cannot be read, that is too long, or whose question is no query, is replaced by
    the next one of the epoch's order.

    Args:
        conversations: all of them.
        look: what makes the images' part.
        tokenizer: the language model's.
        seed: of the order.
        ask: whether a row's first question is the query of its images.
        skipped: told of the rows that cannot be used.
        **how: of `prompts.tokenize`.
    """

    def __init__(
        self,
        conversations: list[Conversation],
        look: Look,
        tokenizer: Any,
        *,
        seed: int,
        ask: bool,
        skipped: SkippedImages,
        **how: Any,
    ) -> None:
        self.conversations, self.look, self.tokenizer = conversations, look, tokenizer
        self.seed, self.ask, self.skipped, self.how = seed, ask, skipped, how
        self._order: tuple[int, Any] | None = None

    def __getitem__(self, position: int) -> dict[str, Any]:
        """The row at a position; positions count without end, epoch after epoch.

        Raises:
            TrainingError: if no row can be used, or too many cannot.
        """
        count, reason = len(self.conversations), ""
        epoch, start = divmod(position, count)
        if self._order is None or self._order[0] != epoch:
            self._order = epoch, np.random.default_rng((self.seed, epoch)).permutation(count)
        for k in range(count):
            number = int(self._order[1][(start + k) % count])
            row = self.conversations[number]
            try:
                seen = self.look(row, self._query(row))
                counts = seen.get("num_image_tokens", [])
                ids, labels = tokenize(row, counts, self.tokenizer, **self.how)
            except (ImageError, QueryError, LongRowError) as error:
                reason = str(error)
                # By number: files may lie elsewhere when a run goes on.
                self.skipped.add({f"row {number} of all": reason})
                continue
            return {"input_ids": torch.tensor(ids), "labels": torch.tensor(labels), **seen}
        raise TrainingError(f"none of the {count} rows can be used; the last: {reason}")

    def _query(self, row: Conversation) -> str | None:
        return row.turns[0][0].replace(PLACE, "").strip() or None if self.ask and row.images else None
