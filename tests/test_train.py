"""The training loop: the closed-form start, its labels, and resuming to the bit."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest
import torch

from dove_ext import DoveConfig, DoveModel, ImageError, StackConfig, VQGANConfig
from dove_train.data import TrainingImages, held_out_images
from dove_train.evaluate import evaluate, laplacian_variance, psnr
from dove_train.initialise import fit_linear_code
from dove_train.losses import LengthTarget, sample_lengths, stop_loss
from dove_train.settings import Settings, TrainingError
from dove_train.train import Run, start_config

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


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"fit_images": 10}, "fit_images must be at least 32, got 10"),
        ({"learning_rate": 0.0}, r"learning_rate must be above 0, got 0\.0"),
        ({"full_share": 2.0}, r"full_share must be between 0 and 1, got 2\.0"),
        ({"silence_branches": True}, "silence_branches needs start_from"),
    ],
)
def test_settings_out_of_range(change: dict[str, Any], sentence: str) -> None:
    with pytest.raises(TrainingError, match=sentence):
        Settings(**change)


def test_presets_without_a_closed_form_are_refused() -> None:
    with pytest.raises(TrainingError, match="no preset is named 'x'; known are dove-base, dove-tiny"):
        start_config(Settings(preset="x"))
    with pytest.raises(TrainingError, match="'dove-base' has no linear code to start from; make"):
        start_config(Settings(preset="dove-base"))


def test_bad_training_data(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.tar").write_text("no tar")
    with tarfile.open(tmp_path / "bad.tar", "w") as tar:
        member = tarfile.TarInfo("a.jpg")
        member.size = 5
        tar.addfile(member, io.BytesIO(b"hello"))
    for path, sentence in (
        ("nope", r"nope' does not exist"),
        ("nope.tar", r"nope\.tar' does not exist; give image folders, tar shards or pictures"),
        ("empty", r"there are no pictures in .*empty"),
        ("text.tar", r"text\.tar' is not a tar file or is damaged"),
        ("bad.tar", r"bad\.tar: a\.jpg' is not a picture or is damaged; rebuild the shard"),
    ):
        with pytest.raises(ImageError, match=sentence):
            TrainingImages([tmp_path / path], 32, 0)
    with pytest.raises(ImageError, match=r"there are no pictures in .*empty; give other held-out data"):
        held_out_images([tmp_path / "empty"], 32, 5)


def test_tar_shards_and_folders_give_the_same_pictures(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "shard.tar", "w") as tar:
        for photo in sorted(PHOTOS[0].iterdir()):
            tar.add(photo, arcname=photo.name)
    assert torch.equal(held_out_images([tmp_path / "shard.tar"], 64, 9), held_out_images(PHOTOS, 64, 9))


def test_a_run_continues_from_another_model_and_keeps_its_shape(tmp_path: Path) -> None:
    shape = DoveConfig(
        name="small",
        image_size=64,
        vqgan=VQGANConfig(
            channels=32, channel_multipliers=(1, 1), encoder_blocks=1, decoder_blocks=1, latent_channels=32,
            codebook_size=7, stem_patch=4, patch_shortcut=True,
        ),
        generator=StackConfig(hidden=64, layers=1, heads=1, mlp=64),
        token_decoder=StackConfig(hidden=64, layers=1, heads=1, mlp=64),
        vocab_size=2,
        head_bias=True,
        shortcut=True,
    )  # fmt: skip
    DoveModel(shape).save_pretrained(tmp_path / "first")
    settings = Settings(
        start_from=str(tmp_path / "first"), silence_branches=True, joint_steps=0, head_steps=2, batch_size=4
    )
    folder = tmp_path / "second"
    folder.mkdir()
    run = Run(settings, TrainingImages(PHOTOS, 64, 0), held_out_images(PHOTOS, 64, 2), folder)
    run.start()
    assert run.model.config.name == "second"  # its tokens are not those of the first model
    before = {name: value.clone() for name, value in run.model.state_dict().items()}
    assert not run.model.vqgan.decoder.conv_out.weight.any()
    run.take_step()
    changed = {n for n, value in run.model.state_dict().items() if not torch.equal(value, before[n])}
    assert changed == {"generator.embed_out.weight", "generator.embed_out.bias"}
