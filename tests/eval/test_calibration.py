"""Whether a p_eos is a probability."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dove_eval import calibration
from dove_eval.systems import Dove
from tests.models.micro import SLOTS, micro, pixels


def test_an_honest_p_eos_has_no_error_and_a_bold_one_has() -> None:
    random = np.random.default_rng(0)
    probability = random.random(200_000)
    good = random.random(200_000) < probability
    honest = calibration.summarise(probability, good)
    assert honest["error"] < 0.01 and honest["prefixes"] == 200_000 and len(honest["bins"]) == 10
    bold = calibration.summarise(np.sqrt(probability), good)
    # E |sqrt(p) - p| = 2/3 - 1/2
    assert bold["error"] == pytest.approx(1 / 6, abs=0.01)


def test_bins_by_hand() -> None:
    result = calibration.summarise(np.array([0.0, 0.05, 0.95, 1.0]), np.array([False, True, True, True]))
    assert [b["prefixes"] for b in result["bins"]] == [2, 2]
    assert [b["good"] for b in result["bins"]] == [0.5, 1.0]
    assert result["error"] == pytest.approx(0.5 * 0.475 + 0.5 * 0.025)
    assert "error 0.250" in calibration.plot(result, "dove", "micro").caption


@torch.no_grad()
def test_only_a_model_with_a_linear_code_promises() -> None:
    assert Dove(micro()).promise is None
    dove = Dove(micro(shortcut=True, promised_psnr=21.0))
    assert dove.promise == 21
    (curve, needed), generated = dove.p_eos(pixels(2)), dove.model.generate(dove.model.condition(pixels(2)))
    assert curve.shape == (2, SLOTS)
    assert torch.equal(curve, dove.model.generator.p_eos(generated.hidden))
    assert torch.equal(needed, 21 + generated.condition.margin)
