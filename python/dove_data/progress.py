"""How far a run is: pictures and tokens a second, the mean length, and the time that is left."""

from __future__ import annotations

import sys
import time
from typing import Any

from dove_data.shards import Row
from dove_ext.progress import progress

_EVERY = 60.0  # seconds between lines where standard error is no terminal


class Progress:
    """A bar on a terminal; elsewhere a line a minute.

    Args:
        total: pictures.
    """

    def __init__(self, total: int) -> None:
        self._total, self._bar = total, progress(total, "tokenize")
        self._begun = self._said = time.monotonic()
        self.seen = self.made = self.tokens = 0

    def add(self, row: Row) -> None:
        """Count a shard; those that were there already say nothing about speed."""
        pictures = row.pictures + len(row.unreadable)
        self.seen += pictures
        if row.made:
            self.made += pictures
            self.tokens += row.tokens
        self._bar.update(pictures)
        now = time.monotonic()
        seconds = max(now - self._begun, 1e-9)
        if self.made and not self._bar.disable:
            facts: dict[str, Any] = {"tokens/s": f"{self.tokens / seconds:.0f}"}
            self._bar.set_postfix({**facts, "mean": f"{self.tokens / self.made:.1f}"})
        elif now - self._said > _EVERY:
            self._said = now
            print(f"dove tokenize: {self.line(seconds)}", file=sys.stderr)

    def line(self, seconds: float) -> str:
        """All of it in one line."""
        text = f"{self.seen} of {self._total} pictures"
        if self.made:
            left = (self._total - self.seen) * seconds / self.made
            text += (
                f", {self.made / seconds:.1f} pictures/s, {self.tokens / seconds:.0f} tokens/s, mean length "
                f"{self.tokens / self.made:.1f}, {left / 60:.0f} minutes left"
            )
        return text

    def close(self) -> None:
        """End the bar."""
        self._bar.close()
