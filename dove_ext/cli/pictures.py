"""Pictures into the verbs: found, and failures kept for the end."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from dove_ext.errors import DoveError

if TYPE_CHECKING:
    from dove_ext.images.index import ImageIndex


@dataclass
class Failures:
    """Inputs that could not be used, kept until the others are done."""

    verb: str
    failed: list[tuple[str, str]] = field(default_factory=list)

    def add(self, path: str | os.PathLike[str], error: Exception) -> None:
        """Keep one for the end."""
        self.failed.append((str(path), str(error)))

    def of(self, index: ImageIndex) -> Callable[[int, Exception], None]:
        """`add` for the pictures of an index, by their numbers."""
        return lambda i, error: self.add(index.name(i), error)

    def require_some(self, done: int) -> None:
        """Give up if nothing could be used.

        Raises:
            DoveError: with the one failure, or all of them.
        """
        if not done:
            messages = [message for _, message in self.failed]
            lines = "".join(f"\n  {message}" for message in messages)
            raise DoveError(messages[0] if len(messages) == 1 else f"none of the inputs can be used:{lines}")

    def as_json(self) -> list[dict[str, str]]:
        """For the JSON reports."""
        return [{"path": path, "error": message} for path, message in self.failed]

    def report(self, done: int) -> int:
        """List them on stderr, and return the exit code."""
        if self.failed:
            print(
                f"dove {self.verb}: {len(self.failed)} of {len(self.failed) + done} failed:", file=sys.stderr
            )
            for _, message in self.failed:
                print(f"  {message}", file=sys.stderr)
        return 1 if self.failed else 0


def find_pictures(arguments: Sequence[str], failures: Failures) -> ImageIndex:
    """The pictures that the arguments name, by the rule of `dove_ext.images.find`.

    Args:
        arguments: pictures, folders and tar shards, as given.
        failures: takes what cannot be read, and folders and shards without pictures.

    Raises:
        DoveError: if there are no pictures at all.
    """
    from dove_ext.images.index import ImageIndex

    index = ImageIndex(arguments, on_problem=failures.add)
    failures.require_some(len(index))
    return index


def printable(text: str | Path) -> str:
    """A name for the terminal; one that holds control characters or undecodable bytes is escaped."""
    text = str(text)
    return text if text.isprintable() else repr(text)[1:-1]
