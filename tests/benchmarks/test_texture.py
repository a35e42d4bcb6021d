"""What texture is made of."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from benchmarks import texture

PHOTO = Path(__file__).parents[2] / "examples" / "photos" / "cat.jpg"


def test_texture_has_the_size_of_every_coefficient() -> None:
    torch.manual_seed(0)
    difference = torch.randn(2, 3, 32, 32)
    changed = texture.shuffled(difference, 8)
    dct = texture.cosines(8)
    torch.testing.assert_close(dct @ dct.T, torch.eye(8), atol=1e-5, rtol=0)
    before, after = (
        dct @ x[:, :, 8:16, 16:24] @ dct.T  # of one block
        for x in (difference, changed)
    )
    torch.testing.assert_close(after.abs(), before.abs(), atol=1e-5, rtol=1e-4)
    flipped = after.sign() != before.sign()
    assert 0.2 < flipped.float().mean() < 0.8 and torch.equal(flipped, flipped[:, :1].expand_as(flipped))


def test_rows(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def distance(a: Tensor, b: Tensor) -> Tensor:
        return (a - b).square().flatten(1).mean(1)

    monkeypatch.setattr(texture, "st_lpips", lambda net: distance)
    assert texture.main([str(PHOTO), "--counts", "16", "--blocks", "16", "--shares", "0.25"]) == 0
    rows = [line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines()[2:]]
    assert [row[1] for row in rows] == ["none", "texture, 16 x 16", "towards the original"]
    assert rows[0][-1] == "+0.0%"
    assert float(rows[1][-1][:-1]) == pytest.approx(
        100 * 0.25**2, abs=2
    )  # nothing to do with what is missing
    assert float(rows[2][-1][:-1]) == pytest.approx(100 * (0.75**2 - 1), abs=1)
