"""Pictures into the verbs: found, read in batches past bad ones, and failures kept for the end."""

from __future__ import annotations

import os
import sys
from argparse import Namespace
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dove_ext.errors import DoveError, ImageError

if TYPE_CHECKING:
    from torch import Tensor

    from dove_ext.images import Fit
    from dove_ext.images.index import ImageIndex
    from dove_ext.models.dove import DoveModel
    from dove_ext.tokens import DoveTokens


@dataclass
class Failures:
    """Inputs that could not be used, kept until the others are done."""

    verb: str
    failed: list[tuple[str, str]] = field(default_factory=list)

    def add(self, path: str | os.PathLike[str], error: Exception) -> None:
        """Keep one for the end."""
        self.failed.append((str(path), str(error)))

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


def read_batches(
    index: ImageIndex, size: int, fit: Fit, batch_size: int, failures: Failures
) -> Iterator[tuple[list[int], Tensor]]:
    """Read pictures in order, past those that cannot be read.

    Yields:
        (list[int], Tensor): which could be read, and their pixels [B, 3, S, S] in [0, 1]. `prepare_images`
        turns these into the very numbers it would have made of the files.
    """
    import torch

    for start in range(0, len(index), batch_size):
        good, pixels = [], []
        for i in range(start, min(start + batch_size, len(index))):
            try:
                pixels.append(index.prepare(i, size, fit=fit))
                good.append(i)
            except ImageError as error:
                failures.add(index.name(i), error)
        if good:
            yield good, (torch.cat(pixels) + 1) / 2


def encode_tiles(
    model: DoveModel,
    index: ImageIndex,
    lengths: dict[str, Any],
    args: Namespace,
    failures: Failures,
    **options: Any,
) -> Iterator[tuple[list[int], DoveTokens]]:
    """Encode pictures in order as tiles, past those that cannot be read.

    Args:
        model: encodes.
        index: of the pictures.
        lengths: from `length_arguments`.
        args: with `tiles`, `batch_size` and `token_budget`.
        failures: takes what cannot be read.
        **options: of `DoveModel.encode`.

    Yields:
        (list[int], DoveTokens): which could be read, and their tokens on the CPU.
    """
    from dove_ext.cli.options import encode

    how = {**options, "tiles": args.tiles, "batch_size": args.batch_size}
    # A budget is shared among all images, so these must be encoded in one call.
    together = len(index) if args.token_budget else args.batch_size
    for start in range(0, len(index), together):
        group = list(range(start, min(start + together, len(index))))
        try:
            tokens = encode(model, [index.image(i) for i in group], lengths, **how)
        except ImageError:
            group = [i for i in group if _usable(index, i, model.config.image_size, failures)]
            if not group:
                continue
            tokens = encode(model, [index.image(i) for i in group], lengths, **how)
        yield group, tokens.cpu()


def _usable(index: ImageIndex, i: int, side: int, failures: Failures) -> bool:
    """Whether tiles can be cut out of a picture; it is decoded to find out."""
    import torch

    from dove_ext.images.cut import cut, waiting

    try:
        next(cut(waiting(index.image(i)), side, (1, 1), torch.device("cpu")))
    except ImageError as error:
        name = repr(index.name(i))
        failures.add(index.name(i), ImageError(str(error).replace("the PIL image", name, 1)))
        return False
    return True


def printable(text: str | Path) -> str:
    """A name for the terminal; one that holds control characters or undecodable bytes is escaped."""
    text = str(text)
    return text if text.isprintable() else repr(text)[1:-1]
