"""Small sets of pictures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seven small pictures of different shapes in two folders."""
    folder = tmp_path_factory.mktemp("small")
    for number in range(7):
        (folder / f"n{number % 2}").mkdir(exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 256, (40 + number, 60 - 3 * number, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"n{number % 2}" / f"{number}.png")
    return folder


@pytest.fixture
def damaged(small: Path, tmp_path: Path) -> Path:
    """Five good pictures; one is cut short and one is text."""
    for file in small.rglob("*.png"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "2.png").write_bytes((tmp_path / "2.png").read_bytes()[:2000])
    (tmp_path / "5.png").write_text("no picture")
    return tmp_path
