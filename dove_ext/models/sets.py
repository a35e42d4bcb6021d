"""A set of pictures through a model in batches, past those that cannot be read."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from dove_ext.errors import ImageError
from dove_ext.images import Fit
from dove_ext.images.cut import cut, waiting
from dove_ext.images.index import ImageIndex
from dove_ext.tokens import DoveTokens

OnProblem = Callable[[int, ImageError], None]
"""Takes the number of a picture that cannot be used, and why."""


def read_batches(
    index: ImageIndex, size: int, fit: Fit, batch_size: int, on_problem: OnProblem
) -> Iterator[tuple[list[int], Tensor]]:
    """Read pictures in order, past those that cannot be read.

    Yields:
        (list[int], Tensor): which of `batch_size` neighbours could be read, and their pixels [B, 3, S, S] in
        [0, 1]. `prepare_images` turns these into the very numbers it would have made of the files.
    """
    for start in range(0, len(index), batch_size):
        good, pixels = [], []
        for i in range(start, min(start + batch_size, len(index))):
            try:
                pixels.append(index.prepare(i, size, fit=fit))
                good.append(i)
            except ImageError as error:
                on_problem(i, error)
        if good:
            yield good, (torch.cat(pixels) + 1) / 2


def encode_set(
    encode: Callable[..., DoveTokens],
    index: ImageIndex,
    size: int,
    *,
    on_problem: OnProblem,
    batch_size: int,
    together: int | None = None,
    fit: Fit = "crop",
    tiles: Any = None,
    query: str | Sequence[str] | None = None,
    **options: Any,
) -> Iterator[tuple[list[int], DoveTokens]]:
    """Encode pictures in order, past those that cannot be read.

    Args:
        encode: `DoveModel.encode`, or what stands for it.
        index: of the pictures.
        size: the model's image size.
        on_problem: takes pictures that cannot be read.
        batch_size: as for `DoveModel.encode`.
        together: so many neighbours in one call, which may share a budget; None: `batch_size`.
        fit: as for `DoveModel.encode`.
        tiles: likewise.
        query: one for all, or a list with one a picture.
        **options: further ones of `encode`.

    Yields:
        (list[int], DoveTokens): which pictures could be read, and their tokens on the CPU.
    """
    together = batch_size if together is None else together

    def call(batch: list[int], images: Any) -> tuple[list[int], DoveTokens]:
        if query is not None:
            options["query"] = query if isinstance(query, str) else [query[i] for i in batch]
        return batch, encode(images, batch_size=batch_size, **options).cpu()

    if tiles is None:
        for batch, images in read_batches(index, size, fit, together, on_problem):
            yield call(batch, images)
        return
    options["tiles"] = tiles
    for start in range(0, len(index), together):
        group = list(range(start, min(start + together, len(index))))
        try:
            yield call(group, [index.image(i) for i in group])
        except ImageError:
            group = [i for i in group if _usable(index, i, size, on_problem)]
            if group:
                yield call(group, [index.image(i) for i in group])


def _usable(index: ImageIndex, i: int, side: int, on_problem: OnProblem) -> bool:
    """Whether tiles can be cut out of a picture; it is decoded to find out."""
    try:
        next(cut(waiting(index.image(i)), side, (1, 1), torch.device("cpu")))
    except ImageError as error:
        name = repr(index.name(i))
        on_problem(i, ImageError(str(error).replace("the PIL image", name, 1)))
        return False
    return True
