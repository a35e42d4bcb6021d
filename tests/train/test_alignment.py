"""Aligning hidden states with a backbone: what is compared, what learns, and going on with a run."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from dove_ext.config import change_shape, preset
from dove_ext.metrics.mobilenet import MobileNetDistance
from dove_ext.models.backbone import Backbone
from dove_ext.models.dove import DoveModel
from dove_train import teachers
from dove_train.alignment import COARSE_SIDES, GRID_WEIGHT, Alignment, TokenReader, draw_views
from dove_train.distributed import World
from dove_train.pointing import read_classifier
from dove_train.run import Run
from dove_train.settings import TrainingError
from dove_train.stage_run import StageRun
from dove_train.stages import AlignedAutoencoderPass, make_pass, parts_of, trained_parameters
from dove_train.teachers import make_teacher
from dove_train.train import train, train_stages
from tests.train.small import lite_file, recipe, run_to_a_checkpoint, settings

STAGES = {
    "features": {"steps": 4, "path": "features", "train": ["features"], "learning_rate": 1e-2},
    "head": {"steps": 2, "train": ["last_layer", "head"], "learning_rate": 1e-2},
}


def changes(mobilenet_file: Path) -> dict[str, Any]:
    shape = {**recipe()["shape"], "generator": {"hidden": 64, "layers": 2, "heads": 1, "mlp": 64}}
    return {"shape": shape, "stages": STAGES, "alignment_weights": str(mobilenet_file), "name": "same"}


def new_run(folder: Path, mobilenet_file: Path, **more: Any) -> Run:
    return Run(settings(**{**changes(mobilenet_file), **more}), folder, World(0, 1, torch.device("cpu")))


def pictures(count: int = 3, side: int = 64) -> torch.Tensor:
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(1)) * 2 - 1


def test_the_distance_is_its_formula(mobilenet_file: Path) -> None:
    torch.manual_seed(0)
    alignment = Alignment(8, 4, make_teacher("mobilenet", str(mobilenet_file)))
    alignment.measure(pictures(5), batch_size=2)
    images, hidden = pictures(), torch.randn(3, 16, 8)
    features, grid = MobileNetDistance(mobilenet_file).features_and_grid(images)
    everything, everywhere = MobileNetDistance(mobilenet_file).features_and_grid(pictures(5))
    whole_target = (features - everything.mean(0)) / (everything.std(0) + 1e-3)
    at = everywhere.permute(0, 2, 3, 1).flatten(0, 2)
    grid_target = (grid.permute(0, 2, 3, 1).flatten(1, 2) - at.mean(0)) / (at.std(0) + 1e-3)
    whole = alignment.heads["whole"](hidden.mean(1)) - whole_target
    there = alignment.heads["grid"](hidden) - grid_target
    expected = whole.square().mean(1) + GRID_WEIGHT * there.square().mean((1, 2))
    torch.testing.assert_close(alignment(hidden, images), expected, rtol=1e-4, atol=1e-4)


def test_views_keep_shape_and_range_and_some_are_coarse(mobilenet_file: Path) -> None:
    alignment = Alignment(8, 16, make_teacher("mobilenet", str(mobilenet_file)))
    images, draws = pictures(20, 256), draw_views(0, 40, 20)
    sharp, seen = alignment.views(images, draws)
    assert sharp.shape == seen.shape == images.shape
    assert sharp.abs().max() <= 1 and seen.abs().max() <= 1
    coarse = (sharp - seen).flatten(1).abs().amax(1) > 0
    assert 8 <= coarse.sum() <= 19
    # A coarse copy holds no frequency above its largest side's.
    spectrum = torch.fft.rfft2(seen[coarse]).abs()
    assert spectrum[..., : COARSE_SIDES[1], 100:].mean() < 0.05 * spectrum[..., :, 1:16].mean()
    again = alignment.views(images[5:8], draw_views(0, 45, 3))  # an image's place decides, not its batch
    assert torch.equal(again[0], sharp[5:8]) and torch.equal(again[1], seen[5:8])


def test_image_states_are_the_stacks_own() -> None:
    torch.manual_seed(0)
    run_shape = {**recipe()["shape"], "generator": {"hidden": 64, "layers": 3, "heads": 1, "mlp": 64}}
    model = DoveModel(change_shape(preset("dove-tiny"), run_shape)).eval()
    seen: list[torch.Tensor] = []
    hook = model.generator.stack.layers[1].register_forward_hook(lambda _, __, out: seen.append(out))
    with torch.no_grad():
        latents = model.vqgan.encode(pictures())
        model.generator(model.condition_on(latents))
        hook.remove()
        states = model.generator.image_states(latents, 2)
    torch.testing.assert_close(states, seen[0][:, : states.shape[1]], rtol=1e-4, atol=1e-5)


def test_each_stage_learns_its_own_and_no_token_changes(tmp_path: Path, mobilenet_file: Path) -> None:
    run = new_run(tmp_path, mobilenet_file)
    run.start()
    parameters = dict(run.model.named_parameters())
    start = {n: p.clone() for n, p in parameters.items()}
    images = pictures(2)
    with torch.no_grad():
        tokens = run.model.generate(run.model.condition(images)).tokens
    StageRun(run, "features", None).train()
    middle = {n: run.averaged.values[n].clone() for n in parameters}
    changed = {n for n in middle if not torch.equal(middle[n], start[n])}
    assert changed and all(
        n.startswith(("generator.from_latent", "generator.stack.layers.0")) for n in changed
    )
    StageRun(run, "head", None).train()
    changed = {n for n, p in parameters.items() if not torch.equal(p, middle[n])}
    last = (
        "generator.stack.layers.1",
        "generator.stack.final",
        "generator.from_token",
        "generator.embed_out",
    )
    assert "generator.embed_out.weight" in changed and all(n.startswith(last) for n in changed)
    with torch.no_grad():
        assert torch.equal(run.model.generate(run.model.condition(images)).tokens, tokens)  # the shortcut's


def test_tokens_learn_without_their_code(tmp_path: Path, mobilenet_file: Path) -> None:
    """A stage that aligns tokens changes the upper layers and the semantic part, no code and no picture."""
    stage = {"steps": 3, "path": "features", "train": ["upper_layers", "tokens"], "learning_rate": 1e-2}
    shape = changes(mobilenet_file)["shape"]
    shape = {**shape, "generator": {**shape["generator"], "layers": 3}}
    run = new_run(tmp_path, mobilenet_file, shape=shape, stages={"semantics": stage})
    run.start()
    start = {n: p.clone() for n, p in run.model.named_parameters()}
    images = pictures(2)
    with torch.no_grad():
        tokens = run.model.generate(run.model.condition(images)).tokens
    StageRun(run, "semantics", None).train()
    changed = {n for n, p in run.model.named_parameters() if not torch.equal(p, start[n])}
    layers = tuple(f"generator.stack.{part}" for part in ("layers.1", "layers.2", "final"))
    assert "generator.to_token.weight" in changed and any(n.startswith(layers[0]) for n in changed)
    assert all(n.startswith((*layers, "generator.to_token")) for n in changed)
    with torch.no_grad():
        now = run.model.generate(run.model.condition(images)).tokens
    code = run.model.config.generator.hidden + 2
    assert torch.equal(now[..., :code], tokens[..., :code])
    assert (now[..., code:] - tokens[..., code:]).abs().amax(1).min() > 0


def test_the_reader_takes_means_of_prefixes() -> None:
    torch.manual_seed(0)
    reader = TokenReader(8, 4, {"whole": 6, "grid": 5})
    tokens = torch.randn(2, 11, 8)
    out = reader(tokens)
    assert out["whole"].shape == (2, 4, 6) and out["grid"].shape == (2, 16, 5)  # of 11, 5, 2 and 1 tokens
    expected = reader.whole(tokens[:, :5].mean(1))
    torch.testing.assert_close(out["whole"][:, 1], expected)
    weight = (reader.place[3] @ reader.key(tokens[1]).T / 8**0.5).softmax(-1)
    torch.testing.assert_close(out["grid"][1, 3], reader.grid(weight @ reader.value(tokens[1])))


@pytest.mark.parametrize("train_parts", [["features"], ["features", "last_layer", "tokens"]])
def test_it_can_be_learned(
    mobilenet_file: Path, monkeypatch: pytest.MonkeyPatch, train_parts: list[str]
) -> None:
    torch.manual_seed(0)
    given = settings(**changes(mobilenet_file))
    given.stages["features"].train = train_parts
    model = DoveModel(change_shape(preset("dove-tiny"), given.shape))
    path = make_pass(model, given.stages["features"], given)
    images = pictures(4)
    path.alignment.measure(images, batch_size=4)
    monkeypatch.setattr(path.alignment, "views", lambda pixels, _: (pixels, pixels))
    monkeypatch.setattr(path.alignment, "targets", cache(path.alignment.targets))  # of the same pixels
    learned = [*trained_parameters(model, given.stages["features"]), *path.alignment.heads.parameters()]
    optimizer = torch.optim.Adam(learned, lr=3e-3)
    losses = []
    for _ in range(60):
        loss = path(images, draw_views(0, 0, 4), 12).alignment.mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


@pytest.fixture
def lite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file as EfficientNet-Lite2's, of a small network with random weights."""
    small = teachers.RelevanceConfig(backbone_width=0.1, backbone_depth=0.4)
    monkeypatch.setattr(teachers, "RelevanceConfig", lambda: small)
    return lite_file(tmp_path / "lite.pth", 0.1, 0.4)


@torch.no_grad()
def test_another_teacher(lite: Path) -> None:
    teacher = make_teacher("efficientnet-lite2", str(lite))
    whole, grid = teacher(pictures())
    backbone = Backbone(0.1, 0.4)
    classifier = read_classifier(lite, backbone)
    expected = backbone(pictures())
    torch.testing.assert_close(grid, expected)
    torch.testing.assert_close(
        classifier.classes(whole),
        classifier(expected.flatten(2).transpose(1, 2)).mean(1),
        rtol=1e-4,
        atol=1e-4,
    )
    alignment = Alignment(8, 4, teacher)
    assert {name: head.out_features for name, head in alignment.heads.items()} == teacher.widths
    assert alignment(torch.zeros(3, 16, 8), pictures()).shape == (3,)


def test_a_teacher_without_weights_is_one_sentence(tmp_path: Path) -> None:
    given = settings(teacher="efficientnet-lite2", alignment_weights=str(tmp_path / "none.pth"))
    given.stages["joint"].path = "features"
    model = DoveModel(change_shape(preset("dove-tiny"), given.shape))
    with pytest.raises(TrainingError, match=r"needs the weights of efficientnet-lite2 .*none\.pth"):
        make_pass(model, given.stages["joint"], given)


def test_latents_learn_from_a_teacher(tmp_path: Path, lite: Path) -> None:
    """A VQGAN's encoder learns from the distance alone, whose weight is the setting's, and a run goes on."""
    stages = {"joint": {"steps": 2, "path": "autoencoder", "train": ["encoder", "decoder"], "crop": 64}}
    shape = {**recipe()["shape"]["vqgan"], "codebook_size": 128, "patch_shortcut": False}
    given = {
        "preset": "vqgan-tiny", "shape": shape, "stages": stages, "loss_scale": "absolute", "mse_weight": 0.0,
        "teacher": "efficientnet-lite2", "alignment_weights": str(lite), "alignment_weight": 0.5,
    }  # fmt: skip
    run = new_run(tmp_path, lite, **given)
    run.start()
    stage = StageRun(run, "joint", None)
    assert isinstance(stage.path, AlignedAutoencoderPass)
    images, draws = pictures(2), draw_views(0, 0, 2)
    outputs = stage.path(images, draws, 1)
    outputs = outputs._replace(latents=None, codes=None)  # whose own losses reach the encoder, too
    plan = stage.plan(run.schedule.place())
    total, tally = run.objective(outputs, images, lambda_eos=0, undecided=1, adversarial=False)
    torch.testing.assert_close(total, 0.5 * outputs.alignment.sum() / 2)
    assert torch.equal(tally["alignment"], outputs.alignment.detach().sum())
    total.backward()
    assert run.model.encoder.conv_in.weight.grad.abs().max() > 0
    assert plan.lengths.shape == (2,)
    stage.train()
    assert run.step == 2

    given["stages"]["joint"]["crop"] = 48
    with pytest.raises(TrainingError, match=r"a multiple of 32, .* got 48"):
        make_pass(run.model, settings(**given).stages["joint"], settings(**given))


RESUMED = {
    "joint": {"steps": 2, "train": ["decoder", "head"]},
    "features": {**STAGES["features"], "steps": 2},
    "head": {**STAGES["head"], "steps": 1},
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, mobilenet_file: Path) -> Run:
    run = new_run(tmp_path_factory.mktemp("whole"), mobilenet_file, stages=RESUMED)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dove_train.stage_run.STATISTICS_IMAGES", 16)  # as in conftest.py
        train(run)
    return run


@pytest.mark.parametrize("stop", [2, 3], ids=["at the stage's start", "in the stage"])
def test_a_resumed_stage_goes_on_to_the_bit(
    tmp_path: Path, mobilenet_file: Path, whole: Run, stop: int
) -> None:
    first = new_run(tmp_path, mobilenet_file, stages=RESUMED, checkpoint_every=stop)
    run_to_a_checkpoint(first, stop)
    second = new_run(tmp_path, mobilenet_file, stages=RESUMED)
    state = second.start()
    assert second.step == stop and (state is None) == (stop == 2)
    train_stages(second, state)
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, second.model.state_dict()[name]), name


def test_features_and_last_layer_are_the_generator() -> None:
    parts = parts_of(DoveModel("dove-tiny"))

    def names(part: str) -> list[int]:
        return sorted(id(p) for module in parts[part] if module is not None for p in module.parameters())

    assert sorted(names("features") + names("last_layer")) == names("generator")
