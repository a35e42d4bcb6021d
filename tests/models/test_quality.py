"""`target_psnr`: the fewest tokens that reach a quality, against every length tried one by one."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from dove_ext import DoveModel
from dove_ext.metrics import PSNR_CEILING, psnr
from dove_ext.models.quality import shortest_reaching
from tests.models.micro import SLOTS, micro, photos, stop_at_share

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def model() -> DoveModel:
    return stop_at_share(micro(shortcut=True)).eval()


def curves(values: list[list[float]]) -> tuple[Tensor, Tensor]:
    """Images, and tokens such that the first n of image b reconstruct it to values[b][n - 1] dB."""
    errors = 10 ** (-torch.tensor(values, dtype=torch.float64) / 20)
    return torch.zeros(len(values), 3, 4, 4, dtype=torch.float64), errors[:, :, None] * 2


def render(tokens: Tensor, lengths: Tensor) -> Tensor:
    error = tokens[torch.arange(len(tokens)), lengths.long() - 1, 0]
    return error[:, None, None, None].expand(-1, 3, 4, 4)


@pytest.mark.parametrize("slots", [1, 2, 3, 7, 8, 9, 64])
def test_finds_the_shortest_of_every_curve_that_rises(slots: int) -> None:
    rising = [float(10 + n) for n in range(slots)]
    pixels, tokens = curves([rising] * (slots + 1))
    for b, target in enumerate([*rising, 99.0]):
        for least in {1, slots // 2 + 1, slots}:
            lengths, reached = shortest_reaching(
                render, tokens, pixels, target - 0.5, most=slots, least=least
            )
            expected = max(min(b + 1, slots), least)
            assert lengths.tolist() == [expected] * len(pixels)
            assert reached.tolist() == pytest.approx([rising[expected - 1]] * len(pixels))


def test_each_image_has_its_own_curve_and_the_cap_wins() -> None:
    pixels, tokens = curves([[20, 30, 40, 50], [10, 11, 12, 13], [35, 36, 37, 38], [7, 8, 9, 33]])
    lengths, reached = shortest_reaching(render, tokens, pixels, 33, most=4)
    assert lengths.tolist() == [3, 4, 1, 4]
    assert reached.tolist() == pytest.approx([40, 13, 35, 33])
    lengths, reached = shortest_reaching(render, tokens, pixels, 33, most=2)
    assert lengths.tolist() == [2, 2, 1, 2]
    assert reached.tolist() == pytest.approx([30, 11, 35, 8])


def test_where_quality_falls_the_neighbour_below_does_not_reach_it() -> None:
    pixels, tokens = curves([[40, 10, 11, 12, 50, 20, 45, 60]])
    lengths, reached = shortest_reaching(render, tokens, pixels, 33, most=8)
    assert lengths.tolist() == [7] and reached.tolist() == pytest.approx([45])


def test_encode_keeps_its_word(model: DoveModel) -> None:
    images = photos(8)[::3]
    full = model.encode(images, num_tokens=SLOTS)
    every = torch.stack(
        [psnr(model.decode(full.truncate(n)), images / 255, black=0) for n in range(1, SLOTS + 1)]
    )
    for target in (float(every.median()), float(every.max()) + 1):
        tokens = model.encode(images, target_psnr=target, batch_size=2)
        assert tokens.psnr is not None
        for b, n in enumerate(tokens.lengths.tolist()):
            assert float(tokens.psnr[b]) == pytest.approx(float(every[n - 1, b]), abs=1e-3)
            assert n == SLOTS or every[n - 1, b] >= target
            assert n == 1 or every[n - 2, b] < target
        alone = [model.encode(image[None], target_psnr=target).lengths.tolist() for image in images]
        assert [n for (n,) in alone] == tokens.lengths.tolist()
    assert tokens.lengths.tolist() == [SLOTS] * 3
    low = float(every.min())
    longer = model.encode(images, target_psnr=low, min_tokens=9)
    assert longer.lengths.tolist() == model.encode(images, target_psnr=low).lengths.clamp_min(9).tolist()
    assert 9 in longer.lengths and longer.psnr is not None
    at = longer.lengths.long()[None] - 1
    torch.testing.assert_close(longer.psnr, every.float().gather(0, at)[0], rtol=0, atol=1e-3)
    capped = model.encode(images, target_psnr=target, max_tokens=9, return_p_eos=True)
    assert capped.lengths.tolist() == [9] * 3 and capped.psnr is not None and capped.p_eos is not None
    assert torch.allclose(capped.psnr, every[8].float(), atol=1e-3)
    torch.testing.assert_close(capped.tokens, full.truncate(9).tokens)


def test_an_exact_reconstruction_counts_as_the_ceiling() -> None:
    pixels, tokens = curves([[20.0, float("inf")]])
    assert shortest_reaching(render, tokens, pixels, 99, most=2)[1].tolist() == [PSNR_CEILING]


@pytest.mark.parametrize("off_by", [0.0, 0.4, -0.4, 30.0, -30.0, float("nan")])
def test_what_is_expected_saves_tries_and_decides_nothing(off_by: float) -> None:
    generator = torch.Generator().manual_seed(0)
    curve = (torch.rand(5, 64, generator=generator) + 0.1).cumsum(1) + 20
    pixels, tokens = curves(curve.tolist())
    tried = 0

    def counted(tokens: Tensor, lengths: Tensor) -> Tensor:
        nonlocal tried
        tried += len(tokens)
        return render(tokens, lengths)

    plain = shortest_reaching(counted, tokens, pixels, 33, most=64)
    bisected, tried = tried, 0
    guided = shortest_reaching(counted, tokens, pixels, 33, most=64, expected=curve + off_by)
    torch.testing.assert_close(guided, plain)
    longer = [
        shortest_reaching(render, tokens, pixels, 33, most=64, least=20, expected=e)
        for e in (curve + off_by, None)
    ]
    torch.testing.assert_close(*longer)
    assert torch.equal(longer[0][0], plain[0].clamp_min(20)) and plain[0].min() < 20 < plain[0].max()
    assert plain[0].tolist() == ((curve < 33).sum(1) + 1).tolist()
    assert bisected >= 5 * 6
    if abs(off_by) < 1:
        assert tried <= 5 * 3


def test_a_linear_code_saves_reconstructions(model: DoveModel, monkeypatch: pytest.MonkeyPatch) -> None:
    images, rendered = photos(4)[::3], 0
    whole = DoveModel.render

    def counted(self: DoveModel, tokens: Tensor, lengths: Tensor, *, total: int | None = None) -> Tensor:
        nonlocal rendered
        rendered += len(tokens)
        return whole(self, tokens, lengths, total=total)

    monkeypatch.setattr(DoveModel, "render", counted)
    target = float(model.encode(images, target_psnr=99).psnr.median()) - 3  # type: ignore[union-attr]
    rendered = 0
    lengths = model.encode(images, target_psnr=target).lengths
    guided, rendered = rendered, 0
    monkeypatch.setattr("dove_ext.models.quality.GUIDED", 0)
    assert torch.equal(model.encode(images, target_psnr=target).lengths, lengths)
    assert guided < rendered
