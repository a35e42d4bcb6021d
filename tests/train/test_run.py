"""The loop: what a step trains, what a run leaves, resuming to the bit, and a run that is killed."""

from __future__ import annotations

import json
import random
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from benchmarks.train_kills import Trial
from dove_ext import DoveModel
from dove_ext.models.vqgan import VQGAN
from dove_train.distributed import World
from dove_train.progress import Reporter
from dove_train.run import Run
from dove_train.settings import Settings, Stage, TrainingError
from dove_train.stage_run import StageRun
from dove_train.stages import trained_parameters
from dove_train.train import train, train_stages
from tests.forks import Forks
from tests.train.small import PARTS, PHOTOS, SHAPE, recipe, run_to_a_checkpoint, settings

ALONE = World(0, 1, torch.device("cpu"))


def new_run(folder: Path, given: Settings | None = None, **changes: Any) -> Run:
    return Run(given or settings(**changes), folder, ALONE)


def started(folder: Path, **changes: Any) -> Run:
    run = new_run(folder, **changes)
    assert run.start() is None  # it does not go on within a stage
    return run


def train_stage(run: Run, name: str) -> None:
    StageRun(run, name, None).train()


def steps_of(folder: Path) -> list[dict[str, Any]]:
    records = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [{k: v for k, v in record.items() if k != "images/s"} for record in records if "loss" in record]


def test_a_run_leaves_a_model_a_log_and_pictures(tmp_path: Path) -> None:
    result = train(new_run(tmp_path, picture_every=2))
    assert set(result["psnr_db"]) == {"4", "8", "16", "32", "64"}
    model = DoveModel.from_pretrained(tmp_path / "model")
    assert model.config.name == tmp_path.name  # its tokens are not those of another run
    assert len(model.encode(PHOTOS / "cat.jpg", num_tokens=3).tokens) == 3
    records = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert records[0]["settings"]["stages"]["joint"]["steps"] == 3
    assert [r["step"] for r in steps_of(tmp_path)] == [1, 2, 3, 4, 5]
    assert {"loss", "eos", "length", "threshold", "lambda", "lr"} <= set(steps_of(tmp_path)[0])
    assert [r["validation"] for r in records if "validation" in r][-1] == result
    assert sorted(p.name for p in (tmp_path / "pictures").iterdir()) == [
        "step-0000002.dove.png",
        "step-0000004.dove.png",
    ]


def test_closed_form_reconstructs_before_training(tmp_path: Path) -> None:
    run = started(tmp_path)
    quality = list(run.evaluate()["psnr_db"].values())
    assert quality == sorted(quality)
    assert quality[0] > 12  # far above an untrained network, which is at about 5 dB
    known = run.model.condition(run.held_out).quality
    assert bool((known.diff() >= 0).all()) and known[:, -1].min() > 18


def test_pictures_of_one_colour_end_in_a_model_that_can_be_saved(tmp_path: Path) -> None:
    """What has no deviation at all is not divided by almost nothing: float16 would not hold it."""
    (tmp_path / "flat").mkdir()
    for name in ("white", "red", "black"):
        Image.new("RGB", (64, 64), name).save(tmp_path / "flat" / f"{name}.png")
    stages = {"head": {"steps": 1, "train": ["head"]}}
    train(new_run(tmp_path / "run", data=[str(tmp_path / "flat")], stages=stages))
    assert DoveModel.from_pretrained(tmp_path / "run" / "model").encode(tmp_path / "flat" / "red.png")


def test_a_stage_trains_its_parts_and_nothing_else(tmp_path: Path) -> None:
    run = started(tmp_path)
    train_stage(run, "joint")
    before = {n: value.clone() for n, value in run.averaged.values.items()}
    train_stage(run, "head")
    changed = {n for n, p in run.model.named_parameters() if not torch.equal(p, before[n])}
    assert "generator.embed_out.weight" in changed  # no stop is in doubt here, so the bias may stay
    assert changed <= {"generator.embed_out.weight", "generator.embed_out.bias"}


def test_overlapping_parts_are_trained_once(tmp_path: Path) -> None:
    model = new_run(tmp_path).model
    once = trained_parameters(model, Stage(train=["generator"]))
    overlapping = Stage(train=["generator", "features", "last_layer", "generator"])
    assert [id(p) for p in trained_parameters(model, overlapping)] == [id(p) for p in once]


def test_a_stage_starts_from_the_average_of_the_one_before(tmp_path: Path) -> None:
    run = started(tmp_path, ema=0.9)
    train_stage(run, "joint")
    averaged = {name: value.clone() for name, value in run.averaged.values.items()}
    raw = run.model.state_dict()
    assert not torch.equal(raw["token_decoder.to_latent.weight"], averaged["token_decoder.to_latent.weight"])
    train_stage(run, "head")
    for name, value in run.model.state_dict().items():
        if "embed_out" not in name:
            assert torch.equal(value, averaged[name]), name
    # A new average, which hardly remembers where the stage began after two steps.
    name = "generator.embed_out.weight"
    now = run.model.state_dict()[name]
    assert (run.averaged.values[name] - now).norm() < 0.5 * (averaged[name] - now).norm()


@pytest.mark.parametrize("changes", [
    {"bf16": True},
    {"shape": {**recipe()["shape"], "gaussian": True}, "kl_weight": 1e-3},
    {"eos_rule": "paper", "gan_weight": 1e-3, "gan_start": 2, "accumulate": 2},
], ids=["sampled", "gaussian", "paper, adversarial, accumulated"])  # fmt: skip
def test_resumed_run_equals_uninterrupted_run(tmp_path: Path, changes: dict[str, Any]) -> None:
    whole = new_run(tmp_path / "a", **changes)
    train(whole)
    first = new_run(tmp_path / "b", **changes, checkpoint_every=2)
    run_to_a_checkpoint(first)
    second = new_run(tmp_path / "b", **changes)
    state = second.start()
    assert second.step == 2
    train_stages(second, state)
    assert steps_of(tmp_path / "a") == steps_of(tmp_path / "b")
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, second.model.state_dict()[name]), name
    for name, value in whole.averaged.values.items():
        assert torch.equal(value, second.averaged.values[name]), name


class Forked:
    """A process of `Forks` as `train_kills` has them."""

    def __init__(self, forks: Forks, arguments: list[str], output: Path) -> None:
        code = f"from dove_ext.cli import main; raise SystemExit(main({arguments}))"
        self.forks, self.pid = forks, forks.start(code, output)
        self.code: int | None = None

    def poll(self) -> int | None:
        return None if self.code is None and self.forks.running() else self.wait()

    def wait(self) -> int:
        if self.code is None:
            self.code = self.forks.wait()
        return self.code


def test_a_run_killed_at_random_moments_goes_on_as_if_nothing_had_happened(tmp_path: Path) -> None:
    forks = Forks("dove_train.train")
    stages = {"joint": {"steps": 4, "train": PARTS}, "head": {"steps": 2, "train": ["head"]}}
    values = recipe(stages=stages, checkpoint_every=2, name="same")
    trial = Trial(values, tmp_path, random.Random(7), partial(Forked, forks))
    assert len(trial.expected["steps of log.jsonl"]) == 6 and "model/model.safetensors" in trial.expected
    for phase in ("step", "checkpoint", "end"):
        kill = trial.kill(phase, tmp_path / phase)
        assert kill["equal"], kill
    forks.close()


def test_resuming_another_run_is_refused(tmp_path: Path) -> None:
    train(new_run(tmp_path))
    with pytest.raises(
        TrainingError, match=r"learning_rate=0\.0001, this run has learning_rate=1\.0; use the"
    ):
        started(tmp_path, learning_rate=1.0)
    with pytest.raises(
        TrainingError, match="2 images a step, this run has 6; change batch_size or accumulate"
    ):
        started(tmp_path, batch_size=3, accumulate=2)
    # What does not change its course may change.
    assert started(tmp_path, log_every=5).schedule.place() is None


def test_a_run_starts_from_another_model(tmp_path: Path) -> None:
    train(new_run(tmp_path / "first"))
    run = started(tmp_path / "second", start_from=str(tmp_path / "first" / "model"), shape={})
    first = DoveModel.from_pretrained(tmp_path / "first" / "model")
    assert torch.equal(run.model.shortcut.order, first.shortcut.order)
    assert run.model.config.image_size == 64
    with pytest.raises(TrainingError, match="do not fit the shape asked for: size mismatch"):
        new_run(tmp_path / "third", start_from=str(tmp_path / "first" / "model"), shape={"vocab_size": 9})


def test_the_quantised_baseline(tmp_path: Path) -> None:
    stages = {
        "joint": {"steps": 2, "path": "autoencoder", "train": ["encoder", "decoder", "codebook"], "crop": 32}
    }
    shape = {**recipe()["shape"]["vqgan"], "codebook_size": 128}
    run = started(tmp_path, preset="vqgan-tiny", shape=shape, stages=stages, loss_scale="absolute")
    assert run.evaluate()["psnr_db"]["1024"] > 15  # k-means of patches, before training
    train(run)
    model = VQGAN.from_pretrained(tmp_path / "model")
    reconstruction, codes = model(torch.zeros(1, 3, 64, 64))
    assert reconstruction.shape == (1, 3, 64, 64) and codes.shape == (1, 64)
    assert "quantiser" in steps_of(tmp_path)[0]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"preset": "x"},
            "no preset is named 'x'; known are dove-base, dove-base-q, dove-tiny, dove-tiny-q, "
            "vqgan-base, vqgan-tiny",
        ),
        ({"shape": {"heads": 3}}, "shape: unknown field 'heads'"),
        ({"stages": {}}, "the recipe has no stages with steps"),
        ({"stages": {"a": {"train": ["head"]}}}, "the recipe has no stages with steps"),
        (
            {"stages": {"a": {"steps": 1, "path": "autoencoder", "train": ["codebook"]}}},
            "trains 'codebook', which this model does not have",
        ),
        ({"preset": "vqgan-tiny", "shape": {}}, "its stages need path: autoencoder"),
        (
            {
                "shape": {**SHAPE, "shortcut": False, "semantic_width": 0},
                "stages": {"a": {"steps": 1, "train": ["tokens"]}},
                "target_length": 20,
            },
            "trains 'tokens', which this model does not have",
        ),
        (
            {"stages": {"a": {"steps": 1, "path": "autoencoder", "train": ["decoder"], "crop": 33}}},
            "crop must be a multiple of 8, the pixels along a latent of this model; got 33",
        ),
        (
            {"shape": {**SHAPE, "shortcut": False, "semantic_width": 0}},
            "target_length is 90, but this model has 64 tokens at most",
        ),
        (
            {"target_length": 90},
            "target_length is 90, but this model has a linear code and promises a quality",
        ),
        ({"device": "cuda:77"}, "the device 'cuda:77' cannot be used"),
    ],
)
def test_runs_that_cannot_be(tmp_path: Path, changes: dict[str, Any], sentence: str) -> None:
    from dove_train.distributed import join

    given = settings(**changes)
    with pytest.raises(TrainingError) as caught, join(given.device, given.parallel) as world:
        Run(given, tmp_path, world)
    assert sentence in str(caught.value)


@pytest.mark.parametrize("rule", ["sampled", "paper"])
def test_a_loss_that_is_not_finite_is_named_and_ends_the_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], rule: str
) -> None:
    learned = [part for part in PARTS if part != "tokens"]
    shape = {**SHAPE, "shortcut": False, "semantic_width": 0}  # whose threshold moves by either rule
    stages = {"joint": {"steps": 20, "train": learned}}
    run = started(tmp_path, eos_rule=rule, shape=shape, target_length=20, stages=stages)
    with torch.no_grad():
        run.model.vqgan.decoder.conv_out.bias.fill_(float("nan"))
    run.averaged.reset(run.model)  # what a stage begins with
    before = run.model.generator.embed_out.bias.clone()
    with pytest.raises(TrainingError, match="ten steps in a row had a loss or gradient that is not finite"):
        train_stages(run, None)
    assert torch.equal(before, run.model.generator.embed_out.bias)  # no step was taken
    assert run.objective.threshold.empty  # nor did the threshold see that loss
    warning = capsys.readouterr().err.splitlines()[0]
    assert "not finite; skipped; images: " in warning and ".jpg" in warning


def test_unreadable_images_are_named_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "photos").mkdir()
    for photo in PHOTOS.iterdir():
        (tmp_path / "photos" / photo.name).write_bytes(photo.read_bytes())
    (tmp_path / "photos" / "broken.jpg").write_bytes(b"no picture")
    run = started(tmp_path / "run", data=[str(tmp_path / "photos")])
    train_stage(run, "joint")
    assert list(run.skipped.reasons) == [str(tmp_path / "photos" / "broken.jpg")]
    again = started(tmp_path / "run", data=[str(tmp_path / "photos")])
    assert again.skipped.reasons == run.skipped.reasons  # a resumed run has not forgotten it
    train_stages(again, None)
    assert capsys.readouterr().err.count("broken.jpg") == 1
    with pytest.raises(TrainingError, match="max_unreadable is 0"):
        train(new_run(tmp_path / "strict", data=[str(tmp_path / "photos")], max_unreadable=0))


def test_collapsed_lengths_are_warned_of_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = Reporter(tmp_path)
    for _ in range(100):
        report.check_lengths(64.0, 64, lambda_eos=0.0)  # before the ramp lengths mean nothing
    assert capsys.readouterr().err == ""
    for _ in range(100):
        report.check_lengths(64.0, 64, lambda_eos=0.1)
    assert capsys.readouterr().err.count("mean length of the last 50 steps is 64.0 of 64 tokens") == 1
    for _ in range(60):
        report.check_lengths(30.0, 64, lambda_eos=0.1)
    for _ in range(60):
        report.check_lengths(1.0, 64, lambda_eos=0.1)
    assert "is 1." in capsys.readouterr().err


def test_minutes_shorten_the_stages(tmp_path: Path) -> None:
    run = new_run(tmp_path, minutes=0.001, stages={"joint": {"steps": 500, "train": ["head"]}})
    train(run)
    assert run.step == 20  # what it takes to know the pace
    again = started(tmp_path, minutes=0.001, stages={"joint": {"steps": 500, "train": ["head"]}})
    assert again.schedule.place() is None


def test_one_slow_step_does_not_shorten_a_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU the first step is one: it loads kernels and starts workers."""
    run = new_run(tmp_path, minutes=1.0, stages={"joint": {"steps": 500, "train": ["head"]}})
    run.start()
    clock = [0.0]

    def take_step(stage: StageRun) -> dict[str, float]:
        clock[0] += 1.0 if run.step else 100.0
        run.schedule.step += 1
        return {}

    monkeypatch.setattr(StageRun, "take_step", take_step)
    monkeypatch.setattr("dove_train.stage_run.time.perf_counter", lambda: clock[0])
    train_stage(run, "joint")
    assert run.step == 60, "a minute of steps of a second"


def test_a_resumed_stage_keeps_its_plan_whatever_the_minutes(tmp_path: Path) -> None:
    stages = {"joint": {"steps": 50, "train": ["head"]}, "head": {"steps": 50, "train": ["head"]}}
    first = new_run(tmp_path, minutes=100.0, stages=stages, checkpoint_every=25)
    run_to_a_checkpoint(first)
    second = new_run(tmp_path, minutes=0.001, stages=stages)
    state = second.start()
    assert second.step == 25
    train_stages(second, state)
    assert second.schedule.planned == {"joint": 50, "head": 20}
    assert [r["stage"] for r in steps_of(tmp_path)] == ["joint"] * 50 + ["head"] * 20


def test_a_run_without_a_checkpoint_begins_its_log_anew(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    started(tmp_path, tensorboard=True).report.progress(9, 9, "joint", {"loss": 1.0})  # then it is killed
    again = started(tmp_path, tensorboard=True)
    assert steps_of(tmp_path) == []
    again.report.progress(1, 9, "joint", {"loss": 2.0})
    assert (tmp_path / "log.jsonl").read_text().count('"settings"') == 1
    again.report.board.close()
    board = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [event.step for event in board.Scalars("loss")] == [1]


def test_activation_checkpointing_gives_the_same_gradients(tmp_path: Path) -> None:
    plain = started(tmp_path / "a")
    train_stage(plain, "joint")
    saving = started(tmp_path / "b", activation_checkpointing=True)
    train_stage(saving, "joint")
    for name, value in plain.model.named_parameters():
        other = dict(saving.model.named_parameters())[name]
        assert torch.allclose(value, other, atol=1e-5), name
