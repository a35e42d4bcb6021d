"""The Python programs under examples/ run and say what their pages quote."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).parents[2]


def test_relevance(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sheet, photo = tmp_path / "out" / "sheet.jpg", ROOT / "examples" / "photos" / "cat.jpg"
    monkeypatch.setattr(sys, "argv", ["relevance.py", str(photo), "-o", str(sheet)])
    runpy.run_path(str(ROOT / "examples" / "relevance.py"), run_name="__main__")
    whole, masked = (line.split() for line in capsys.readouterr().out.splitlines()[1:])
    assert float(masked[3]) > float(whole[2]) + 3  # dB at 48 tokens
    assert float(masked[-1]) < 0.8 * float(whole[-1])  # tokens at its own length
    with Image.open(sheet) as image:
        assert image.size == (3 * 256, 256)


def test_vlm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    photo, folder = ROOT / "examples" / "photos" / "cat.jpg", tmp_path / "vlm"
    monkeypatch.setattr(sys, "argv", ["vlm.py", str(photo), "-o", str(folder), "--max-tokens", "20"])
    runpy.run_path(str(ROOT / "examples" / "vlm.py"), run_name="__main__")
    tokens, shapes, answer = capsys.readouterr().out.splitlines()
    assert tokens == "cat.jpg: 20 tokens of 512"
    assert shapes.startswith("prompt [1, 3") and isinstance(answer, str)
    assert {"config.json", "model.safetensors", "processor_config.json"} <= {f.name for f in folder.iterdir()}
