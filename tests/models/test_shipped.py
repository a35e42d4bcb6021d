"""The files of the shipped models are those whose hashes stand in the code, or they are refused."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from dove_ext import CheckpointError, DoveModel
from dove_ext.config import PRESETS
from dove_ext.models import pretrained, shipped
from release import hashes
from tests.models.micro import micro

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.usefixtures("one_thread")


def test_the_hashes_in_the_code_are_those_of_the_files() -> None:
    table = hashes.shipped_files(ROOT)
    assert {name for name in PRESETS if pretrained.shipped_folder(name)} == set(table)
    assert all({"config.json", "model.safetensors"} <= files.keys() for files in table.values())
    assert table == shipped.SHIPPED, "dove_ext/weights has changed: make hashes"


def test_the_table_is_written_in_place_of_the_old_one() -> None:
    text = (ROOT / hashes.TABLE).read_text()
    assert hashes.written(text, shipped.SHIPPED) == text
    other = hashes.written(text, {"a": {"config.json": "0" * 64}})
    assert '    "a": {\n        "config.json": "' + "0" * 64 + '",\n    },\n}\n' in other
    assert hashes.written(other, shipped.SHIPPED) == text
    with pytest.raises(ValueError, match="0 tables SHIPPED"):
        hashes.written("", {})


@pytest.fixture
def micro_shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A micro model that ships as "dove-tiny"."""
    folder = tmp_path / "dove-tiny"
    micro().save_pretrained(folder)
    table = {name: shipped.digest(folder / name) for name in ("config.json", "model.safetensors")}
    monkeypatch.setattr(shipped, "SHIPPED", {"dove-tiny": table})
    monkeypatch.setattr(pretrained, "_place", lambda name: tmp_path / name)
    return folder


@pytest.mark.parametrize("file", ["config.json", "model.safetensors"])
@pytest.mark.parametrize("damage", ["torn", "changed", "gone"])
def test_a_shipped_file_that_is_not_what_it_was_is_refused(
    micro_shipped: Path, file: str, damage: str
) -> None:
    DoveModel.from_pretrained("dove-tiny")
    path = micro_shipped / file
    content = path.read_bytes()
    path.unlink()
    if damage != "gone":  # a change of one bit leaves a valid model
        changed = content[:-1] + bytes([content[-1] ^ 1])
        path.write_bytes(content[: len(content) // 2] if damage == "torn" else changed)
    with pytest.raises(CheckpointError) as caught:
        DoveModel.from_pretrained("dove-tiny")
    message = str(caught.value)
    assert message.startswith(str(path)) and "\n" not in message
    assert "pip install --force-reinstall --no-deps dove-ext" in message
    path.unlink(missing_ok=True)
    path.write_bytes(content)
    DoveModel.from_pretrained("dove-tiny")


def test_a_model_that_builds_on_a_shipped_one_is_read_with_the_right_one_only(
    micro_shipped: Path, tmp_path: Path
) -> None:
    micro().save_pretrained(tmp_path / "own", base="dove-tiny")
    DoveModel.from_pretrained(tmp_path / "own")
    with (micro_shipped / "model.safetensors").open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\x01")
    with pytest.raises(CheckpointError, match=r"model\.safetensors is not the file that came with dove_ext"):
        DoveModel.from_pretrained(tmp_path / "own")
