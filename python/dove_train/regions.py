"""Queries with boxes as training takes them: at least one, and refused with a `TrainingError`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from dove_ext.errors import ImageError
from dove_ext.images import regions
from dove_ext.images.index import ImageIndex
from dove_ext.images.regions import Regions
from dove_train.settings import TrainingError


@contextmanager
def refusing() -> Iterator[None]:
    """Pictures or notes that cannot be used cannot be trained on: a `TrainingError` in the same words."""
    try:
        yield
    except ImageError as error:
        raise TrainingError(str(error)) from error


def require_some(found: Regions) -> Regions:
    """These, if there are any.

    Raises:
        TrainingError: with the report, otherwise.
    """
    if not len(found):
        raise TrainingError(f"{found.source} has no query that could be trained: {found.why_empty()}")
    return found


@refusing()
def find_pictures(root: Path) -> ImageIndex:
    """The pictures in a data set's folder, or in the shards that lie there.

    Raises:
        TrainingError: naming the folder, if there are none.
    """
    return ImageIndex([root])


@refusing()
def read_shards(paths: Sequence[Path]) -> Regions:
    """`dove_ext.images.regions.read_shards`, of which some must hold a query.

    Raises:
        TrainingError: naming the path, shard or JSON, and what is wrong with it.
    """
    return require_some(regions.read_shards(paths))
