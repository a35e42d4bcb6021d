"""Classifier heads: what they learn, what they must not see, and against scikit-learn."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dove_eval.datasets import find_images
from dove_eval.features import extract
from dove_eval.heads import LINEAR, MLP, train_and_test
from dove_eval.sources import DatasetError
from dove_eval.systems import Pixels

QUICK = replace(LINEAR, epochs=20, min_steps=150, seeds=2)


def clouds(count: int, apart: float, classes: int = 3, width: int = 12) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    centres = random.normal(size=(classes, width)) * apart
    labels = random.integers(classes, size=count)
    return (centres[labels] + random.normal(size=(count, width))).astype(np.float32), labels


@pytest.mark.parametrize(
    "settings", [QUICK, replace(MLP, hidden=64, learning_rate=3e-3, min_steps=150, seeds=2)]
)
def test_separable_classes_are_learnt(settings: object) -> None:
    features, labels = clouds(300, 5.0)
    score = train_and_test(features, labels, np.arange(200), np.arange(200, 300), settings)  # type: ignore[arg-type]
    assert score.accuracy > 0.98 and score.held_out > 0.98 and len(score.seeds) == 2


def test_xor_needs_the_hidden_layer() -> None:
    random = np.random.default_rng(0)
    features = random.uniform(-1, 1, size=(600, 2)).astype(np.float32)
    labels = (features[:, 0] * features[:, 1] > 0).astype(np.int64)
    train, test = np.arange(450), np.arange(450, 600)
    linear = train_and_test(features, labels, train, test, QUICK)
    mlp = train_and_test(
        features,
        labels,
        train,
        test,
        replace(MLP, hidden=32, epochs=60, min_steps=0, seeds=2, learning_rate=1e-2, batch_size=64),
    )
    assert linear.accuracy < 0.65 and mlp.accuracy > 0.9


def test_chance_without_information() -> None:
    features = np.random.default_rng(0).normal(size=(900, 8)).astype(np.float32)
    labels = np.random.default_rng(1).integers(3, size=900)
    score = train_and_test(features, labels, np.arange(300), np.arange(300, 900), QUICK)
    assert 0.25 < score.accuracy < 0.42


def test_against_scikit_learn() -> None:
    linear_model = pytest.importorskip("sklearn.linear_model")
    features, labels = clouds(1200, 0.6, classes=5)
    train, test = np.arange(600), np.arange(600, 1200)
    theirs = linear_model.LogisticRegression(max_iter=500).fit(features[train], labels[train])
    ours = train_and_test(features, labels, train, test, replace(QUICK, epochs=60))
    assert ours.accuracy == pytest.approx(theirs.score(features[test], labels[test]), abs=0.03)


def test_repeats_to_the_bit_and_ignores_scale_and_test_rows() -> None:
    features, labels = clouds(200, 0.7)
    train, test = np.arange(120), np.arange(120, 200)
    first = train_and_test(features, labels, train, test, QUICK)
    assert train_and_test(features, labels, train, test, QUICK) == first
    changed = features.copy()
    changed[test] = 0
    other = train_and_test(changed, labels, train, test, QUICK)
    assert other.held_out == first.held_out, "the test rows play no part in training or choosing"
    scaled = train_and_test(features * 1000 + 5, labels, train, test, QUICK)
    assert scaled.accuracy == pytest.approx(first.accuracy, abs=0.05), "features are standardised"


def test_a_constant_feature_does_no_harm() -> None:
    features, labels = clouds(200, 5.0)
    features = np.concatenate([features, np.full((200, 1), 7.123, np.float32)], 1)
    score = train_and_test(features, labels, np.arange(120), np.arange(120, 200), QUICK)
    assert score.accuracy > 0.95


def photos(folder: Path, broken: tuple[str, ...] = ()) -> Path:
    """Two training images and a test image."""
    for i, name in enumerate(("train/a/1.png", "train/b/2.png", "test/b/3.png")):
        (folder / name).parent.mkdir(parents=True)
        Image.new("RGB", (8, 8), (90 * i,) * 3).save(folder / name)
        if name in broken:
            (folder / name).write_bytes(b"broken")
    return folder


def test_the_fewest_images_that_are_enough(tmp_path: Path) -> None:
    images = find_images([photos(tmp_path / "photos")]).labelled()
    (pixels,) = extract(images, [Pixels()], 8, tmp_path / "out", fit="crop", batch_size=2)
    assert 0 <= pixels.score("thumbnail", replace(QUICK, min_steps=2, epochs=2)).accuracy <= 1


@pytest.mark.parametrize("broken", ["train/a/1.png", "test/b/3.png"])
def test_too_few_readable_images_are_one_sentence(tmp_path: Path, broken: str) -> None:
    images = find_images([photos(tmp_path / "photos", (broken,))]).labelled()
    counts = r"1 training images \(1 classes\) and 1 test" if "train" in broken else "2 classes\\) and 0 test"
    with pytest.raises(DatasetError, match=f"{counts} images of .*{broken}' is not a picture"):
        extract(images, [Pixels()], 8, tmp_path / "out", fit="crop", batch_size=2)


def test_systems_are_compared_on_the_same_images(tmp_path: Path) -> None:
    class Blind(Pixels):
        key = "blind"

        def features(self, pixels: torch.Tensor, counts: object) -> dict[str, torch.Tensor]:
            out = super().features(pixels, ())
            out["thumbnail"][pixels.mean((1, 2, 3)) > 0.9] = torch.inf
            return out

    folder = photos(tmp_path / "photos")
    Image.new("RGB", (8, 8), (255,) * 3).save(folder / "train" / "a" / "4.png")
    images = find_images([folder]).labelled()
    both = extract(images, [Pixels(), Blind()], 8, tmp_path / "out", fit="crop", batch_size=2)
    assert [len(system.train) for system in both] == [2, 2]


def test_one_seed_has_no_deviation() -> None:
    features, labels = np.eye(8, dtype=np.float32).repeat(4, 0), np.arange(8).repeat(4)
    rows = np.arange(32)
    for seeds, plus_minus in ((1, False), (2, True)):
        settings = replace(QUICK, seeds=seeds, epochs=1, min_steps=1)
        score = train_and_test(features, labels, rows, rows, settings)
        assert ("±" in score.text()) == plus_minus and (score.deviation is None) != plus_minus
