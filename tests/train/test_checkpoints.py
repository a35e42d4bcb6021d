"""Checkpoints: whole or not at all, pruned, and found past damaged ones."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from dove_ext import OutputError
from dove_train.checkpoints import checkpoint_files, newest_checkpoint, read_checkpoint, write_checkpoint
from dove_train.settings import TrainingError


def write(folder: Path, *steps: int, keep: int = 9) -> None:
    for step in steps:
        write_checkpoint(folder, step, {"weights": torch.full((1000,), float(step))}, keep)


def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    write(tmp_path, 8, 9, 10, 11, keep=2)
    assert [p.name for p in checkpoint_files(tmp_path)] == ["step-0000010.pt", "step-0000011.pt"]
    state = newest_checkpoint(tmp_path, pytest.fail)
    assert state is not None and state["step"] == 11


def test_what_was_just_written_is_kept(tmp_path: Path) -> None:
    """A run that passed over a torn checkpoint may write one with a lower number."""
    write(tmp_path, 100, 200, 300)
    write_text(checkpoint_files(tmp_path)[-1])
    write(tmp_path, 250, keep=1)
    assert [p.name for p in checkpoint_files(tmp_path)] == ["step-0000250.pt"]


def test_nothing_there_is_a_new_run(tmp_path: Path) -> None:
    assert newest_checkpoint(tmp_path / "nowhere", pytest.fail) is None


def test_a_full_disk_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, 1)

    def fail(state: object, path: Path) -> None:
        path.write_bytes(b"half of it")
        raise RuntimeError("[enforce fail at inline_container.cc:820] . PytorchStreamWriter failed\nframe #0")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(OutputError, match=r"cannot write '.*step-0000002\.pt': .* failed; free some space"):
        write(tmp_path, 2)
    assert [p.name for p in tmp_path.iterdir()] == ["step-0000001.pt"]


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def misname(path: Path) -> None:
    """A name in the zip's directory that is no UTF-8."""
    data = bytearray(path.read_bytes())
    at = data.index(b"PK\x01\x02")
    data[at + 9] |= 8  # the bit of the flags that says UTF-8
    data[at + 46] = 0xFF
    path.write_bytes(data)


def write_text(path: Path) -> None:
    path.write_text("not a checkpoint")


def write_other(path: Path) -> None:
    torch.save({"model": {}}, path)


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (truncate, "is torn or no checkpoint"),
        (flip_a_bit, "is damaged"),
        (misname, "is torn or no checkpoint"),
        (write_text, "is torn or no checkpoint"),
        (write_other, "was not written by this version of dove train"),
    ],
)
def test_a_damaged_one_is_passed_over(tmp_path: Path, damage, sentence: str) -> None:  # type: ignore[no-untyped-def]
    write(tmp_path, 1, 2)
    newest = checkpoint_files(tmp_path)[-1]
    damage(newest)
    with pytest.raises(TrainingError, match=sentence):
        read_checkpoint(newest)
    warnings: list[str] = []
    state = newest_checkpoint(tmp_path, warnings.append)
    assert state is not None and state["step"] == 1
    assert len(warnings) == 1 and sentence in warnings[0] and "using the one before it" in warnings[0]


def test_all_damaged_is_refused(tmp_path: Path) -> None:
    write(tmp_path, 1, 2)
    for path in checkpoint_files(tmp_path):
        write_text(path)
    with pytest.raises(TrainingError, match=r"none of the 2 checkpoints in .* can be used; remove them"):
        newest_checkpoint(tmp_path, lambda text: None)
