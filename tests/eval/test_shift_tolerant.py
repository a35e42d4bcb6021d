"""ST-LPIPS: agreement with the published implementation, blur, and refusals."""

from __future__ import annotations

import sys
import types
from pathlib import Path

import pytest
import torch

from dove_eval.shift_tolerant import st_lpips
from dove_ext.errors import CheckpointError
from dove_ext.metrics.distance import FeatureDistance
from tests.conftest import import_or_skip
from tests.metrics.test_metrics import as_recorded, pair, refusal, rises_with_blur

pytestmark = pytest.mark.usefixtures("one_thread")


def packaged(net: str) -> FeatureDistance:
    pytest.importorskip("stlpips_pytorch")
    if net == "vgg":
        import_or_skip("torchvision")
    return st_lpips(net)


def test_it_equals_stlpips_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    import_or_skip("torchvision")
    ours = packaged("alex")
    # The package imports these two and, for what is computed here, uses neither.
    for module, name in (("IPython", "embed"), ("torchsummary", "summary")):
        stand_in = types.ModuleType(module)
        setattr(stand_in, name, None)
        monkeypatch.setitem(sys.modules, module, stand_in)
    theirs = pytest.importorskip("stlpips_pytorch.stlpips").LPIPS(
        net="alex", variant="shift_tolerant", verbose=False
    )
    a, b = pair(size=49)
    with torch.no_grad():
        torch.testing.assert_close(ours(a, b), theirs(a, b).flatten(), rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize(("net", "name"), [("alex", "st-lpips"), ("vgg", "st-lpips-vgg")])
def test_it_gives_what_it_gave(net: str, name: str) -> None:
    as_recorded(name, packaged(net))


@torch.no_grad()
@pytest.mark.parametrize("net", ["alex", "vgg"])
def test_it_rises_with_blur(net: str) -> None:
    rises_with_blur(packaged(net))


@pytest.mark.parametrize("net", ["alex", "vgg"])
def test_without_the_package(monkeypatch: pytest.MonkeyPatch, net: str) -> None:
    monkeypatch.setattr("dove_ext.metrics.weights.find_spec", lambda _: None)
    text = refusal(CheckpointError, st_lpips, net)
    assert text.startswith(
        "the package 'stlpips_pytorch' is not installed: pip install 'dove-ext[perceptual]', or give the "
        f"path of {net}_"
    )


def test_foreign_weights(mobilenet_file: Path) -> None:
    text = refusal(CheckpointError, st_lpips, "alex", mobilenet_file)
    assert "is not stlpips-pytorch's alex_shift_tolerant.pth: its layer" in text
