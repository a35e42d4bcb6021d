"""Lengths chosen with full knowledge."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest

from dove_eval import oracle
from dove_eval.datasets import find_images
from dove_eval.oracle import best_lengths
from dove_eval.systems import Dove
from tests.models.micro import linear

PHOTOS = Path(__file__).parents[2] / "examples" / "photos"


def test_best_lengths_beat_every_other_choice_of_that_mean() -> None:
    counts = np.array([1, 2, 4, 8])
    # Convex curves; the second image is easy, the third hard.
    errors = np.array([[8.0, 4, 2, 1], [0.4, 0.2, 0.1, 0.05], [80.0, 40, 20, 10]])
    chosen = best_lengths(counts, errors, mean_length=5.0)
    lengths = counts[chosen]
    assert lengths.tolist() == [4, 1, 8]
    affordable = [c for c in itertools.product(range(4), repeat=3) if counts[list(c)].sum() <= lengths.sum()]
    totals = [sum(errors[i, k] for i, k in enumerate(c)) for c in affordable]
    assert errors[np.arange(3), chosen].sum() == min(totals)


def test_the_oracle_is_at_least_as_good_as_one_length_for_all(tmp_path: Path) -> None:
    model = Dove(linear())
    counts = np.array(oracle.counts_of(model))
    assert counts.tolist() == [1, 2, 4, 8, 16, 24, 32, 40, 48, 56, 64]
    rows = oracle.measure(find_images([PHOTOS]), model, tmp_path, fit="crop", batch_size=2)
    (row,) = oracle.summarise(rows, model, [8.0])
    errors = rows["errors"].astype(np.float64)
    lengths = counts[best_lengths(counts, errors, 8.0)]
    assert row["asked"] == 8 and row["length"] == pytest.approx(lengths.mean()) and lengths.mean() <= 8
    same = counts.tolist().index(counts[counts <= lengths.mean()].max())  # one length for all, no more tokens
    ratio = errors[:, same].mean() / errors[:, -1].mean()
    assert row["mse_over_full"] < ratio - 0.01  # each image has another best length
