"""The training loop: the closed-form start, its labels, and resuming to the bit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from dove_ext import DoveModel
from dove_train.data import TrainingImages, held_out_images
from dove_train.evaluate import evaluate, laplacian_variance, psnr
from dove_train.initialise import fit_linear_code
from dove_train.losses import LengthTarget, sample_lengths, stop_loss
from dove_train.settings import Settings
from dove_train.train import Run

PHOTOS = [Path(__file__).parents[1] / "examples" / "photos"]
QUICK = Settings(joint_steps=3, decoder_steps=3, head_steps=2, batch_size=2, fit_images=32, warmup_steps=2)


@pytest.fixture(scope="module")
def held_out() -> torch.Tensor:
    return held_out_images(PHOTOS, 256, limit=2)


def new_run(folder: Path, held_out: torch.Tensor, settings: Settings = QUICK) -> Run:
    return Run(settings, TrainingImages(PHOTOS, 256, settings.seed), held_out, folder)


def test_linear_code_reconstructs_before_training(held_out: torch.Tensor) -> None:
    model = DoveModel("dove-tiny").eval()
    fit_linear_code(model, TrainingImages(PHOTOS, 256, 0).batch(32))
    quality = [evaluate(model, held_out)["psnr_db"][n] for n in ("16", "64", "256")]
    assert quality == sorted(quality)
    assert quality[0] > 15  # far above an untrained network, which is at about 5 dB


def test_resumed_run_equals_uninterrupted_run(tmp_path: Path, held_out: torch.Tensor) -> None:
    (tmp_path / "a").mkdir()
    whole = new_run(tmp_path / "a", held_out)
    whole.start()
    for _ in range(4):
        whole.take_step()

    (tmp_path / "b").mkdir()
    first = new_run(tmp_path / "b", held_out)
    first.start()
    for _ in range(2):
        first.take_step()
    first.save(tmp_path / "b" / "checkpoint.pt")
    second = new_run(tmp_path / "b", held_out)
    second.start()
    assert second.step == 2
    for _ in range(2):
        second.take_step()

    assert second.lengths.threshold == whole.lengths.threshold
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, second.model.state_dict()[name]), name
    for name, value in whole.averaged.state_dict().items():
        assert torch.equal(value, second.averaged.state_dict()[name]), name


def test_resuming_with_other_settings_is_refused(tmp_path: Path, held_out: torch.Tensor) -> None:
    run = new_run(tmp_path, held_out)
    run.save(tmp_path / "checkpoint.pt")
    other = new_run(tmp_path, held_out, Settings(**{**vars(QUICK), "learning_rate": 1.0}))
    with pytest.raises(ValueError, match=r"learning_rate=0\.0001, this run has learning_rate=1\.0"):
        other.start()


def test_run_to_the_end_leaves_a_loadable_model(tmp_path: Path, held_out: torch.Tensor) -> None:
    settings = Settings(**{**vars(QUICK), "joint_steps": 1, "decoder_steps": 1, "head_steps": 1})
    run = new_run(tmp_path, held_out, settings)
    run.start()
    result = run.run(report=lambda line: None)
    assert set(result["psnr_db"]) == {"16", "32", "64", "128", "256"}
    model = DoveModel.from_pretrained(tmp_path / "model")
    assert len(model.encode(PHOTOS[0] / "cat.jpg", num_tokens=3).tokens) == 3
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert lines[0]["settings"]["joint_steps"] == 1
    assert lines[-1]["validation"] == result


def test_stop_label_is_whether_the_loss_is_good_enough() -> None:
    p = torch.full((3, 4), 0.5)
    p[0, 1], p[1, 2] = 0.9, 0.9
    lengths = torch.tensor([1, 2, 4], dtype=torch.int32)  # the last is K: nothing left to stop
    loss = torch.tensor([0.1, 0.3, 0.1])
    expected = (-torch.tensor(0.9).log() - torch.tensor(0.1).log()) / 2
    assert torch.isclose(stop_loss(p, lengths, loss, threshold=0.2), expected)


def test_sampled_lengths_cover_the_range() -> None:
    lengths = sample_lengths(4000, 256, full_share=0.25, generator=torch.Generator().manual_seed(0))
    assert lengths.min() == 1 and lengths.max() == 256
    assert 0.22 < (lengths == 256).float().mean() < 0.29
    assert (lengths < 16).float().mean() > 0.3  # half of the log-uniform range


def test_threshold_follows_the_mean_length() -> None:
    target = LengthTarget(target=90, threshold=1.0)
    target.update(180)
    assert target.threshold > 1  # too many tokens: a larger loss is good enough
    target.update(45)
    target.update(45)
    assert target.threshold < 1.02


def test_measures_on_known_images() -> None:
    flat = torch.zeros(1, 3, 8, 8)
    assert laplacian_variance(flat).item() == 0
    assert psnr(flat, flat + 0.2).item() == pytest.approx(20, abs=1e-3)  # 0.1 of the range


def test_sampler_shows_every_image_once_an_epoch() -> None:
    images = TrainingImages(PHOTOS, 32, seed=1)
    images.batch(3)
    position = images.position
    first = images.batch(len(images))
    images.position = position
    assert torch.equal(first, images.batch(len(images)))  # the state is (seed, position)
    assert first.min() >= -1 and first.max() <= 1
