"""Frozen features of a labelled set, extracted once by every system and kept on disk."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dove_eval.datasets import ImageSet
from dove_eval.heads import HeadSettings, Score, train_and_test
from dove_eval.rows import Rows, fill
from dove_eval.settings import COUNTS
from dove_eval.sources import DatasetError
from dove_eval.systems import Dove, Pixels, Vqgan
from dove_ext.images import Fit
from dove_ext.images.labels import TEST, TRAIN
from dove_ext.progress import progress

FeatureSystem = Dove | Vqgan | Pixels


@dataclass(frozen=True)
class Extracted:
    """Features of one system, with labels.

    Attributes:
        system: who made them.
        rows: a column a kind of feature.
        labels: int64 [N], -1 where the image could not be read.
        train: readable training rows, int64.
        test: readable test rows, int64.
        classes: class names.
    """

    system: FeatureSystem
    rows: Rows
    labels: np.ndarray
    train: np.ndarray
    test: np.ndarray
    classes: list[str]

    def score(self, column: str, settings: HeadSettings) -> Score:
        """Test accuracy of heads trained on one column."""
        return train_and_test(self.rows[column], self.labels, self.train, self.test, settings)


def extract(
    images: ImageSet, systems: Sequence[FeatureSystem], size: int, output: Path, *, fit: Fit, batch_size: int
) -> list[Extracted]:
    """Every system's features at `COUNTS` and of every layer; goes on where an earlier run stopped.

    Args:
        images: with labels and splits (`ImageSet.labelled`).
        systems: in the report's order.
        size: side of the images.
        output: the report's folder.
        fit: how an image becomes square.
        batch_size: images at once.

    Raises:
        DatasetError: if too few images can be read for a classifier.
    """
    classes = images.classes
    number = {name: i for i, name in enumerate(classes)}
    labels = np.array([-1 if item.label is None else number[item.label] for item in images.items])
    split = np.array([item.split for item in images.items])
    readable = np.ones(len(images), bool)
    tables = []
    for system in systems:

        def compute(_: list[int], pixels: Tensor, system: FeatureSystem = system) -> dict[str, Tensor]:
            return system.features(pixels, COUNTS)

        rows = fill(
            output, f"features-{system.key}", images, compute,
            identity=[system.identity, list(COUNTS), torch.__version__], size=size, fit=fit,
            batch_size=batch_size,
        )  # fmt: skip
        readable[rows.bad] = False  # for all systems: they stand side by side on the same images
        train = (readable & (split == TRAIN)).nonzero()[0]
        test = (readable & (split == TEST)).nonzero()[0]
        _require_enough(images, labels[train], len(test))
        tables.append(rows)
    return [
        Extracted(system, rows, labels, train, test, classes)
        for system, rows in zip(systems, tables, strict=True)
    ]


def _require_enough(images: ImageSet, train_labels: np.ndarray, tests: int) -> None:
    """A head needs two classes, with them one image to learn from and one to choose by, and a test image."""
    classes = len(np.unique(train_labels))
    if classes < 2 or tests < 1:
        first = next(iter(images.failed.values()), None)
        raise DatasetError(
            f"{len(train_labels)} training images ({classes} classes) and {tests} test images of "
            f"{images.source} can be read; a classifier needs training images of two classes and a test image"
            + ("" if first is None else f" (the first that cannot be read: {first})")
        )


def score_all(
    extracted: Sequence[Extracted],
    columns: Callable[[Extracted], list[str]],
    settings: HeadSettings,
    verb: str,
    points: str,
) -> list[dict[str, Any]]:
    """Accuracy of every system at each of its `columns` (JSON): an entry a system, scores under `points`."""
    jobs = [(e, column) for e in extracted for column in columns(e)]
    series: dict[str, dict[str, Any]] = {}
    with progress(len(jobs), verb) as bar:
        for e, column in jobs:
            entry = series.setdefault(
                e.system.key, {"system": e.system.key, "name": e.system.name, points: {}}
            )
            entry[points][column] = e.score(column, settings).to_json()
            bar.update()
    return list(series.values())


def describe(extracted: Extracted) -> dict[str, int]:
    """How much data there is."""
    return {
        "train": len(extracted.train), "test": len(extracted.test), "classes": len(extracted.classes)
    }  # fmt: skip
