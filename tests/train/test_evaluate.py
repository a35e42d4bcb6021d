"""Lengths chosen with full knowledge, and what an evaluation reports."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from dove_train.data import held_out_images
from dove_train.evaluate import best_lengths, evaluate, loss_by_length, main, oracle
from tests.models.micro import micro, stop_at_share
from tests.train.small import PHOTOS


def test_best_lengths_beat_every_other_choice_of_that_mean() -> None:
    counts = torch.tensor([1, 2, 4, 8], dtype=torch.int32)
    # Convex curves; the second image is easy, the third hard.
    errors = torch.tensor([[8.0, 4, 2, 1], [0.4, 0.2, 0.1, 0.05], [80.0, 40, 20, 10]])
    lengths = best_lengths(counts, errors, mean_length=5.0)
    assert lengths.tolist() == [4, 1, 8]
    chosen = errors.gather(1, torch.tensor([[2], [0], [3]])).sum()
    every = torch.cartesian_prod(*[torch.arange(4)] * 3)
    affordable = every[counts[every].sum(1) <= lengths.sum()]
    totals = errors[torch.arange(3), affordable].sum(1)
    assert chosen == totals.min()


def test_the_oracle_is_at_least_as_good_as_one_length_for_all() -> None:
    model = micro(shortcut=True)
    pixels, _ = held_out_images([PHOTOS], 32, 5)
    counts, errors = loss_by_length(model, pixels, every=8)
    assert counts.tolist() == [1, 2, 4, 8, 16, 24, 32, 40, 48, 56, 64]
    row = oracle(model, pixels, (24.0,))[0]
    mean = best_lengths(counts, errors, 24.0).float().mean()
    assert row["length_mean"] == pytest.approx(mean.item(), abs=0.05) and mean <= 24
    same = counts[counts <= mean].max()  # one length for all, at no more tokens
    ratio = (errors[:, counts == same].mean() / errors[:, -1].mean()).item()
    assert row["loss_ratio_own_to_full"] < ratio - 0.01  # each image has another best length


def test_a_report_adds_up() -> None:
    model = stop_at_share(micro(shortcut=True))
    result = evaluate(model, held_out_images([PHOTOS], 32, 5)[0], batch_size=2)
    assert result["images"] == 5 and sum(result["length_histogram"]) == 5
    assert set(result["psnr_db"]) == {"4", "8", "16", "32", "64"}
    assert result["length_p5"] <= result["length_mean"] <= result["length_p95"]


def test_the_command_names_what_it_cannot_find(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("sys.argv", ["evaluate", "--model", str(tmp_path), "--data", "nowhere"])
    with pytest.raises(SystemExit, match=r"holds no config\.json"):
        main()


@pytest.mark.parametrize("limit", ["0", "-5"])
def test_a_limit_that_leaves_no_images_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], limit: str
) -> None:
    monkeypatch.setattr("sys.argv", ["evaluate", "--data", str(PHOTOS), "--limit", limit])
    with pytest.raises(SystemExit):
        main()
    assert f"--limit must be at least 1, got {limit}" in capsys.readouterr().err
