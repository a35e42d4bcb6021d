"""Every metric against somebody else's implementation, on real photographs where pictures are involved."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from dove_eval import bootstrap, frechet, quality
from dove_eval.length_study import correlation, spearman
from dove_eval.segment import principal_colours
from dove_ext import prepare_images
from dove_ext.metrics import PSNR_CEILING, mse, psnr

PHOTOS = sorted((Path(__file__).parents[2] / "examples" / "photos").glob("*.jpg"))


@pytest.fixture(scope="module")
def pair() -> tuple[torch.Tensor, torch.Tensor]:
    """Photographs and a blurred, noisy version of each, [5, 3, 96, 96] in [-1, 1]."""
    photos = prepare_images([str(p) for p in PHOTOS], 96)
    blurred = torch.nn.functional.avg_pool2d(photos, 3, 1, 1, count_include_pad=False)
    noise = torch.randn(photos.shape, generator=torch.Generator().manual_seed(0))
    return photos, (blurred + 0.05 * noise).clamp(-1, 1)


def unit(images: torch.Tensor) -> np.ndarray:
    return ((images.double() + 1) / 2).permute(0, 2, 3, 1).numpy()


def test_ssim_against_scikit_image(pair: tuple[torch.Tensor, torch.Tensor]) -> None:
    metrics = pytest.importorskip("skimage.metrics")
    ours = quality.ssim(*pair)
    for value, a, b in zip(ours, unit(pair[0]), unit(pair[1]), strict=True):
        _, full = metrics.structural_similarity(
            a, b, data_range=1, channel_axis=2, gaussian_weights=True, sigma=1.5, use_sample_covariance=False,
            full=True,
        )  # fmt: skip
        # scikit-image's window is cut off at 3.5 sigma, 11 pixels; the border of 5 has partial windows.
        assert float(value) == pytest.approx(full[5:-5, 5:-5].mean(), abs=2e-5)


def test_ssim_against_torchmetrics(pair: tuple[torch.Tensor, torch.Tensor]) -> None:
    image = pytest.importorskip("torchmetrics.functional.image")
    a, b = ((x + 1) / 2 for x in pair)
    # torchmetrics pads by reflection before it filters; the border of 5 is not comparable.
    _, full = image.structural_similarity_index_measure(a, b, data_range=1.0, return_full_image=True)
    assert torch.allclose(quality.ssim(*pair), full[..., 5:-5, 5:-5].mean((1, 2, 3)), atol=2e-5)


def test_pixel_errors_against_scikit_image(pair: tuple[torch.Tensor, torch.Tensor]) -> None:
    metrics = pytest.importorskip("skimage.metrics")
    rows = zip(
        psnr(*pair, black=-1.0), mse(*pair, black=-1.0), quality.l1(*pair), *map(unit, pair), strict=True
    )
    for decibel, squared, l1, a, b in rows:
        assert float(decibel) == pytest.approx(metrics.peak_signal_noise_ratio(a, b, data_range=1), abs=1e-3)
        assert float(squared) == pytest.approx(metrics.mean_squared_error(a, b), rel=1e-4)
        assert float(l1) == pytest.approx(np.abs(a - b).mean(), rel=1e-4)
    assert psnr(pair[0], pair[0], black=-1.0, ceiling=PSNR_CEILING).tolist() == [100.0] * len(pair[0])


def features(count: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Patches of photographs, sharp and blurred, as features [count, width]."""
    photos = prepare_images([str(p) for p in PHOTOS], 128)
    out = []
    for images in (photos, torch.nn.functional.avg_pool2d(photos, 3, 1, 1)):
        patches = torch.nn.functional.unfold(images, 8, stride=8).transpose(1, 2).flatten(0, 1)
        out.append(patches[:count, :width].contiguous().numpy())
    return out[0], out[1]


@pytest.mark.parametrize(("count", "width"), [(40, 64), (64, 64), (700, 48)])
def test_frechet_distance_against_scipy(count: int, width: int) -> None:
    linalg = pytest.importorskip("scipy.linalg")
    a, b = features(count, width)
    rows = np.arange(count)
    ours = frechet.frechet_distance(frechet.moments(a, rows), frechet.moments(b, rows))
    covariances = [np.cov(x.astype(np.float64), rowvar=False) for x in (a, b)]
    # With fewer rows than columns the product is singular; scipy's square root needs a push, as in every FID.
    push = np.eye(width) * (1e-6 if count <= width else 0)
    root = linalg.sqrtm((covariances[0] + push) @ (covariances[1] + push)).real
    theirs = np.square(a.mean(0, dtype=np.float64) - b.mean(0, dtype=np.float64)).sum()
    theirs += np.trace(covariances[0]) + np.trace(covariances[1]) - 2 * np.trace(root)
    assert ours == pytest.approx(theirs, rel=2e-2 if count <= width else 1e-6)


def test_frechet_distance_of_few_and_many_rows_is_one_formula() -> None:
    a, b = features(100, 48)
    rows = np.arange(100)
    many = frechet.frechet_distance(frechet.moments(a, rows), frechet.moments(b, rows))
    wide = np.zeros(
        (2, 100, 200), np.float32
    )  # the same features with empty columns: fewer rows than columns
    wide[0, :, :48], wide[1, :, :48] = a, b
    few = frechet.frechet_distance(frechet.moments(wide[0], rows), frechet.moments(wide[1], rows))
    assert few == pytest.approx(many, rel=1e-9)
    assert frechet.frechet_distance(frechet.moments(a, rows), frechet.moments(a, rows)) == pytest.approx(
        0, abs=1e-9
    )
    estimate = frechet.Reference(a, rows).distance(b)
    assert estimate.value == many
    assert estimate.low is not None and 0 < estimate.value - estimate.low < 0.2 * estimate.value
    assert estimate.count == 100


def test_correlations_against_scipy() -> None:
    stats = pytest.importorskip("scipy.stats")
    random = np.random.default_rng(0)
    a = random.integers(1, 9, 60).astype(np.float64)  # with ties
    b = np.exp(a / 3) + random.normal(size=60)
    assert correlation(a, b) == pytest.approx(stats.pearsonr(a, b).statistic)
    pairs = np.stack([a, b], 1)
    assert spearman(pairs) == pytest.approx(stats.spearmanr(a, b).statistic)
    assert np.isnan(correlation(a, np.ones(60)))


def test_bootstrap_against_scipy() -> None:
    stats = pytest.importorskip("scipy.stats")
    values = np.random.default_rng(1).gamma(2.0, size=80)
    theirs = stats.bootstrap((values,), np.mean, method="percentile", n_resamples=4000, random_state=0)
    for ours in (bootstrap.mean(values, 4000), bootstrap.bootstrap(np.mean, values, 4000)):
        assert ours.value == values.mean() and ours.count == 80
        assert ours.low is not None and ours.high is not None
        assert ours.low == pytest.approx(theirs.confidence_interval.low, abs=0.03)
        assert ours.high == pytest.approx(theirs.confidence_interval.high, abs=0.03)


@pytest.mark.parametrize("dtype", [np.float64, np.float32, bool])
def test_many_resamples_at_a_time_are_those_drawn_one_by_one(
    dtype: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bootstrap, "AT_ONCE", 300)
    for count in (2, 29, 301):
        values = (np.random.default_rng(3).normal(size=count) * 3).astype(dtype)
        one_by_one = bootstrap.bootstrap(lambda rows: float(rows.mean()), values, 70)
        assert bootstrap.mean(values, 70) == one_by_one


def test_jackknife_of_a_mean_is_its_standard_error() -> None:
    stats = pytest.importorskip("scipy.stats")
    values = np.random.default_rng(2).normal(size=200)
    left = [values[keep].mean() for keep in bootstrap.leave_out(200, groups=200)]
    estimate = bootstrap.jackknife(values.mean(), left, 200)
    half = stats.t.ppf(0.975, 199) * values.std(ddof=1) / np.sqrt(200)
    assert estimate.high is not None
    assert estimate.high - estimate.value == pytest.approx(half, rel=1e-6)


def test_even_areas_have_the_similarity_of_exact_sums() -> None:
    metrics = pytest.importorskip("skimage.metrics")
    a = torch.full((1, 3, 32, 32), 0.99)
    b = a - 2 / 255
    how = {"data_range": 1, "gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    exact = metrics.structural_similarity(
        *((x[0].double().numpy() + 1) / 2 for x in (a, b)), channel_axis=0, **how
    )
    assert float(quality.ssim(a, b)) == pytest.approx(exact, abs=1e-6) and float(quality.ssim(a, b)) <= 1


def test_too_few_images_have_no_interval() -> None:
    assert bootstrap.mean(np.array([3.0])).text() == "3.00"
    assert "[" not in bootstrap.mean(np.arange(9.0)).text() and "[" in bootstrap.mean(np.arange(10.0)).text()
    a, b = features(3, 8)
    assert frechet.Reference(a, np.arange(3)).distance(b).low is None


def test_principal_components_against_scikit_learn() -> None:
    decomposition = pytest.importorskip("sklearn.decomposition")
    grid = torch.randn(3, 16, 10, generator=torch.Generator().manual_seed(0)) * torch.arange(1, 11)
    colours, share = principal_colours(grid)
    theirs = decomposition.PCA(3).fit(grid.flatten(0, 1).numpy())
    assert share == pytest.approx(theirs.explained_variance_ratio_.sum(), rel=1e-5)
    parts = theirs.transform(grid.flatten(0, 1).numpy())
    for component in range(3):
        ours = colours[..., component].ravel().astype(np.float64)
        assert abs(np.corrcoef(ours, parts[:, component])[0, 1]) > 0.98  # scaled, clipped, perhaps flipped


def test_inception_against_torch_fidelity(tmp_path: Path) -> None:
    """Random weights in the published layout: what counts is the network around them."""
    theirs_module = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3")
    models = pytest.importorskip("torchvision.models")
    from dove_eval.inception import FidInception

    torch.manual_seed(0)
    network = models.Inception3(num_classes=1008, aux_logits=False, init_weights=False)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_var.uniform_(0.5, 2)
            module.running_mean.normal_(0, 0.1)
    torch.save(network.state_dict(), tmp_path / "inception.pth")
    theirs = theirs_module.FeatureExtractorInceptionV3(
        "inception", ["2048"], feature_extractor_weights_path=str(tmp_path / "inception.pth")
    )
    images = prepare_images([str(PHOTOS[0])], 64)[..., :48].add(1).mul(127.5).round().to(torch.uint8)
    ours = FidInception(tmp_path / "inception.pth")(images.float() / 127.5 - 1)
    assert ours.shape == (1, 2048) and float(ours.std()) > 0.01
    assert torch.allclose(ours, theirs(images)[0], atol=1e-5)
