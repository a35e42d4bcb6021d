"""Which networks judge, under which names, and what is said when their weights are not there."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from dove_eval import backbones
from dove_eval.settings import DISTANCES
from dove_ext.errors import CheckpointError


class Network(torch.nn.Module):
    """Stands for MobileNetV2 and for InceptionV3."""

    digest = "ab" * 32

    def __init__(self, *_: Any) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(1))

    def forward(self, a: torch.Tensor, b: torch.Tensor | None = None) -> torch.Tensor:
        return (a if b is None else a - b).square().flatten(1).mean(1)

    def features(self, a: torch.Tensor) -> torch.Tensor:
        return a.mean((2, 3))


def missing(*_: Any) -> None:
    raise CheckpointError("the package is not installed: pip install it")


class Missing(Network):
    def __init__(self, *_: Any) -> None:
        missing()


@pytest.fixture
def mobilenet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backbones, "MobileNetDistance", Network)


def test_mobilenet_serves_both_under_its_own_name(mobilenet: None) -> None:
    notes: list[str] = []
    distance, features = backbones.load(None, None, None, notes)
    assert distance is not None and features is not None and not notes
    assert distance.name == "MobileNetV2 feature distance"
    assert features.name == "Frechet distance (MobileNetV2)" and "not FID" in features.protocol
    images = torch.rand(2, 3, 8, 8)
    assert torch.equal(features.measure(images), images.mean((2, 3)))
    assert distance.network(images, images).tolist() == [0, 0]


def test_inception_makes_it_fid(mobilenet: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dove_eval.inception.FidInception", Network)
    notes: list[str] = []
    distance, features = backbones.load(None, None, "inception.pth", notes)
    assert features is not None and features.name == "FID" and "abababab" in features.protocol
    assert distance is not None and not notes


def test_without_weights_the_report_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backbones, "MobileNetDistance", Missing)
    notes: list[str] = []
    assert backbones.load(None, None, None, notes) == (None, None)
    assert notes == [
        "Perceptual distance and Frechet distance: the package is not installed: pip install it."
    ]
    monkeypatch.setattr(backbones, "perceptual_distance", missing)
    monkeypatch.setattr(backbones, "st_lpips", missing)
    for name, weights in (
        ("lpips-vgg", None),
        ("st-lpips", None),
        (None, "here.pth"),
    ):  # asked for: no silent way around
        with pytest.raises(CheckpointError):
            backbones.load(name, weights, None, [])


def test_every_distance_has_a_name() -> None:
    from dove_ext.metrics import PERCEPTUAL_DISTANCES

    assert {*PERCEPTUAL_DISTANCES, *backbones.SHIFT_TOLERANT} == set(DISTANCES)
