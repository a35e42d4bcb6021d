"""Sampled lengths, and the thresholds that stop labels compare with."""

from __future__ import annotations

import pytest
import torch

from dove_train.length_sampling import RunningThreshold, TargetThreshold, sample_lengths


def test_sampled_lengths_cover_the_range() -> None:
    lengths = sample_lengths(0, 0, 4000, 256, full_share=0.25)
    assert lengths.min() == 1 and lengths.max() == 256
    assert 0.22 < (lengths == 256).float().mean() < 0.29
    assert (lengths < 16).float().mean() > 0.3  # half of the log-uniform range


def test_a_length_depends_on_its_place_alone() -> None:
    whole = sample_lengths(5, 100, 12, 64, full_share=0.2)
    assert torch.equal(whole[4:7], sample_lengths(5, 104, 3, 64, full_share=0.2))
    assert not torch.equal(whole, sample_lengths(6, 100, 12, 64, full_share=0.2))


def test_target_threshold_follows_the_mean_length() -> None:
    target = TargetThreshold(target=90)
    assert target.empty and target.value(2.0) == 2.0 and not target.empty
    target.update(loss=5.0, mean_length=180)
    assert target.value(0.0) == pytest.approx(2.0 * 1.02)  # too many tokens: a larger loss is good enough
    target.update(loss=5.0, mean_length=45)
    assert target.value(0.0) == pytest.approx(2.0 * 1.02 * 0.99)


def test_target_threshold_does_not_start_from_a_loss_that_is_not_finite() -> None:
    target = TargetThreshold(target=90)
    for loss in (float("nan"), float("inf")):
        target.value(loss)
        assert target.empty
    assert target.value(2.0) == 2.0


def test_running_threshold_is_the_mean_of_a_window() -> None:
    running = RunningThreshold(window=2)
    assert running.empty and running.value(7.0) == 7.0
    for loss in (1.0, 2.0, 4.0):
        running.update(loss, mean_length=3)
    assert running.value(0.0) == 3.0
    again = RunningThreshold(window=2)
    again.restore(running.state())
    assert again.value(0.0) == 3.0
