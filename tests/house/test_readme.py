"""What the README shows runs as it stands: its Python, top to bottom, and its commands."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch

from dove_ext.cli import main

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


@pytest.fixture(autouse=True)
def beside_the_examples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in ("examples", "recipes"):
        (tmp_path / folder).symlink_to(ROOT / folder)
    monkeypatch.chdir(tmp_path)


def test_python_blocks_run_one_after_the_other(tmp_path: Path) -> None:
    blocks = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    assert len(blocks) == 2
    names: dict[str, Any] = {}
    for block in blocks:
        exec(block, names)
    first, second = names["dove_ext"].encode(names["photos"]).lengths.tolist()
    assert f"{first} and {second}: each image" in README
    assert (tmp_path / "tokens.safetensors").exists()
    assert names["features"].shape == (2, 256, 256)
    # A model of the user's own has nothing to do with the one that the package's functions keep.
    with torch.no_grad():
        names["dove_ext"].load_model().generator.embed_out.bias.add_(100)
    assert names["dove_ext"].encode(names["photos"]).lengths.tolist() == [first, second]


@pytest.mark.usefixtures("mobilenet_package")
def test_commands_succeed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    commands = re.findall(r"^    dove (.*?)(?:  +#.*)?$", README, flags=re.MULTILINE)
    assert [c.split()[0] for c in commands] == ["encode", "decode", "reconstruct", "info", "models", "train"]
    for command in commands:
        assert main(shlex.split(command)) == 0, capsys.readouterr().err
    assert len(list((tmp_path / "out" / "pictures").glob("*.png"))) == 5
    assert (tmp_path / "out" / "sheet" / "sheet-01.dove.png").exists()


def test_files_it_links_to_exist() -> None:
    links = re.findall(r"\]\((?!https?:)([^)]+)\)", README)
    assert links
    for link in links:
        assert (ROOT / link).exists(), link
