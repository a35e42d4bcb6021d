"""Mosaics as training takes them: of augmented tiles, and refused with a `TrainingError`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dove_ext.images import mosaics
from dove_ext.images.mosaics import Mosaic
from dove_train.augment import Augmentation
from dove_train.regions import refusing


class Mosaics(mosaics.Mosaics):
    """`dove_ext.images.mosaics.Mosaics` whose tiles are random crops of their pictures.

    Args:
        paths: see there, and so for the others.
        size: side of a mosaic in pixels.
        seed: not negative.
        augmentation: of a tile.

    Raises:
        TrainingError: if there are fewer than two labels, or paths or notes cannot be read.
    """

    @refusing()
    def __init__(
        self, paths: Sequence[Path], size: int, seed: int, *, augmentation: Augmentation | None = None
    ) -> None:
        super().__init__(paths, size, seed, cut=augmentation or Augmentation())

    @refusing()
    def __getitem__(self, position: int) -> Mosaic:
        """The mosaic at a place of the run.

        Raises:
            TrainingError: if 100 pictures of a label in a row cannot be read.
        """
        return super().__getitem__(position)
