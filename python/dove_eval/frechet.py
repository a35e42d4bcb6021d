"""Frechet distance between two sets of features (Heusel et al. 2017), streamed, with its spread.

|m1 - m2|^2 + tr C1 + tr C2 - 2 tr (C1 C2)^(1/2). With factors C = F^T F the last trace is the sum of the
singular values of F1 F2^T: no square root of a product, and with fewer images than features only small
matrices.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dove_eval.bootstrap import Estimate, jackknife, leave_out

CHUNK = 512  # rows in memory at once
LEAST_IMAGES = 4  # for an interval


@dataclass(frozen=True)
class Moments:
    """Mean [D], trace of the covariance (n - 1), and a factor F [r, D] with F^T F = covariance, r <= D."""

    mean: np.ndarray
    trace: float
    factor: np.ndarray


def moments(features: np.ndarray, rows: np.ndarray) -> Moments:
    """Of some rows (indices int64, at least two) of features [N, D], which may be memory-mapped."""
    count, width = len(rows), features.shape[1]
    chunks = [rows[start : start + CHUNK] for start in range(0, count, CHUNK)]
    mean = sum(features[part].astype(np.float64).sum(0) for part in chunks) / count
    if count <= width:
        factor = (features[rows].astype(np.float64) - mean) / np.sqrt(count - 1)
        return Moments(mean, float(np.square(factor).sum()), factor)
    covariance = np.zeros((width, width))
    for part in chunks:
        centred = features[part].astype(np.float64) - mean
        covariance += centred.T @ centred
    values, vectors = np.linalg.eigh(covariance / (count - 1))
    factor = np.sqrt(np.maximum(values, 0))[:, None] * vectors.T
    return Moments(mean, float(np.maximum(values, 0).sum()), factor)


def frechet_distance(a: Moments, b: Moments) -> float:
    """The squared 2-Wasserstein distance of the two normal distributions, as FID reports it."""
    cross = np.linalg.svd(a.factor @ b.factor.T, compute_uv=False).sum()
    return float(np.square(a.mean - b.mean).sum() + a.trace + b.trace - 2 * cross)


class Reference:
    """The real images' side of Frechet distances: its moments are taken once, for every jackknife group.

    Args:
        features: [N, D], may be memory-mapped.
        rows: which of them count, int64.
        groups: of the jackknife.
    """

    def __init__(self, features: np.ndarray, rows: np.ndarray, groups: int = 10) -> None:
        self.rows = rows
        kept = leave_out(len(rows), groups) if len(rows) >= LEAST_IMAGES else []
        self.sides = [(part, moments(features, part)) for part in (rows, *(rows[keep] for keep in kept))]

    def distance(self, other: np.ndarray) -> Estimate:
        """From paired features [N, D], with a grouped jackknife's interval.

        The jackknife leaves out both features of an image together. Like every Frechet distance the value is
        biased upwards on few images; the interval does not include that bias. Fewer than four images have
        no interval.
        """
        value, *left = (frechet_distance(real, moments(other, part)) for part, real in self.sides)
        return jackknife(value, left, len(self.rows))
