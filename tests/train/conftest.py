"""What every run here leaves out, because more of it proves nothing."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def few_statistics(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a backbone's features: a forward pass of MobileNetV2 an image, most of a short run's time."""
    monkeypatch.setattr("dove_train.stage_run.STATISTICS_IMAGES", 16)
