"""What verbs write: never over an input or a photograph; long names; standard output that is gone."""

from __future__ import annotations

import errno
import io
import os
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from dove_ext.atomic import atomic_write, check_writable_file, remove_unfinished
from dove_ext.cli import main
from dove_ext.tokens import DoveTokens
from tests.cli.stand_in import PatchModel
from tests.cli.test_command import model, photos, run
from tests.models.micro import micro

__all__ = ["model", "photos"]  # fixtures
ROOT = Path(__file__).parents[2]


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# --- Over no input ----------------------------------------------------------------------------------------


def test_tokens_are_written_over_no_picture(
    model: PatchModel, photos: Path, tmp_path: Path, capsys: Any
) -> None:
    (photos / "a").write_bytes((photos / "a.png").read_bytes())  # a picture by its content only
    (photos / "raw").write_bytes((photos / "a.png").read_bytes())
    before = contents(tmp_path)
    for arguments, words in (
        (("-o", photos / "a.png", photos / "b.JPG"), "a.png' is named like a picture"),
        (("-o", photos / "new.jpg", photos / "b.JPG"), "new.jpg' is named like a picture"),
        ((photos / "a.png", "-o", photos / "a"), "a' is a picture, and tokens would be written over it"),
    ):
        code, out, err = run(capsys, "encode", *arguments)
        assert (code, out) == (1, "") and words in err and len(err.splitlines()) == 1
    assert contents(tmp_path) == before


def test_tokens_are_written_over_no_shard(
    model: PatchModel, photos: Path, tmp_path: Path, capsys: Any
) -> None:
    with tarfile.open(tmp_path / "s.tar", "w") as tar:
        tar.add(photos / "a.png", "a.png")
    (tmp_path / "link").symlink_to("s.tar")
    os.link(tmp_path / "s.tar", tmp_path / "hard")
    before = contents(tmp_path)
    for output in ("s.tar", "link", "hard"):
        code, _, err = run(capsys, "encode", tmp_path / "s.tar", "-o", tmp_path / output)
        assert code == 1 and f"{output}' would be written over, but it is an input" in err
    assert contents(tmp_path) == before


@pytest.mark.parametrize("victim", ["a.dove.png", "sheet-01.dove.png"])
def test_reconstruct_writes_over_no_input(
    victim: str, model: PatchModel, photos: Path, tmp_path: Path, capsys: Any
) -> None:
    (photos / victim).write_bytes((photos / "a.png").read_bytes())
    before = contents(photos)
    code, _, err = run(capsys, "reconstruct", photos / "a.png", photos / victim, "-o", photos)
    assert code == 1 and f"{victim}' would be written over, but it is an input" in err
    assert contents(photos) == before
    assert run(capsys, "reconstruct", photos / "a.png", "-o", photos)[0] == 0, "an output may be replaced"


def test_decode_does_not_write_over_its_tokens(
    model: PatchModel, photos: Path, tmp_path: Path, capsys: Any
) -> None:
    run(capsys, "encode", photos / "a.png", "-o", tmp_path / "t.safetensors")
    (tmp_path / "t.safetensors").rename(tmp_path / "a.dove.png")
    before = contents(tmp_path)
    code, _, err = run(capsys, "decode", tmp_path / "a.dove.png", "-o", tmp_path)
    assert code == 1 and "a.dove.png' would be written over, but it is an input" in err
    assert contents(tmp_path) == before


def test_convert_does_not_write_over_its_inputs(tmp_path: Path, capsys: Any) -> None:
    folder = tmp_path / "micro"
    micro().save_pretrained(folder)
    save_file({"x": torch.zeros(1)}, tmp_path / "x.safetensors")
    before = contents(folder)
    for inputs in (
        ("--pythia", folder / "model.safetensors"),
        ("--pythia", tmp_path / "x.safetensors", "--base", folder),
    ):
        code, _, err = run(capsys, "convert", *inputs, "-o", folder)
        assert code == 1 and "model.safetensors' would be written over, but it is an input" in err
    assert contents(folder) == before


def test_train_does_not_write_over_the_model_it_starts_from(tmp_path: Path, capsys: Any) -> None:
    micro().save_pretrained(tmp_path / "model")
    before = contents(tmp_path)
    recipe, photos = ROOT / "recipes" / "dove-tiny.yaml", ROOT / "examples" / "photos"
    data = ("--data", photos, "--validation", photos)
    code, _, err = run(capsys, "train", recipe, *data, "--start-from", tmp_path / "model", "-o", tmp_path)
    assert code == 1 and "model' would be written over, but it is an input; choose another -o" in err
    assert contents(tmp_path) == before


@pytest.mark.parametrize(
    "arguments", [("encode", "a.png"), ("decode", "t"), ("reconstruct", "a.png"), ("convert", "--vqgan", "x")]
)
def test_a_dash_is_no_output(
    arguments: tuple[str, ...], tmp_path: Path, monkeypatch: Any, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = run(capsys, *arguments, "-o", "-")
    assert (code, out) == (2, "") and "'-' is no place for a result" in err
    assert not list(tmp_path.iterdir())


# --- Long names -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["日" * 85, "é" * 127 + "x", "a" * 255, "日" * 81 + ".safetensors", "x." + "日" * 84]
)
def test_names_of_255_bytes_can_be_written(name: str, tmp_path: Path) -> None:
    assert 253 <= len(name.encode()) <= 255
    check_writable_file(tmp_path / name)
    with atomic_write(tmp_path / name) as temporary:
        temporary.write_text("whole")
    assert [path.name for path in tmp_path.iterdir()] == [name]


# --- Standard output --------------------------------------------------------------------------------------


class Broken(io.RawIOBase):
    """A descriptor that takes nothing."""

    def __init__(self, error: int) -> None:
        self.error = error

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        raise OSError(self.error, os.strerror(self.error))


def put_in_place_of_stdout(monkeypatch: pytest.MonkeyPatch, raw: Any, encoding: str) -> None:
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding, write_through=True))


def test_what_a_killed_process_had_begun_to_write_can_be_removed(tmp_path: Path) -> None:
    kept = (".notes.txt", ".a-0123456789ab", "a-0123456789ab.pt", ".a-0123.pt", "b.txt")
    for name in kept[:1] + kept[2:]:
        (tmp_path / name).touch()
    (tmp_path / kept[1]).mkdir()
    begun = []
    for name in ("step-1.pt", "log", "x" * 251 + ".txt", "\udcff\n.txt"):
        with atomic_write(tmp_path / name) as temporary:
            begun.append(temporary.name)
        (tmp_path / name).rename(tmp_path / begun[-1])  # as it lies there if the process is killed
    remove_unfinished(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == set(kept)
    remove_unfinished(tmp_path / "nowhere")


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_names_that_the_output_cannot_show_are_escaped(
    encoding: str, model: PatchModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.new("RGB", (16, 16)).save(tmp_path / "日本.png")
    raw = io.BytesIO()
    put_in_place_of_stdout(monkeypatch, raw, encoding)
    assert main(["encode", str(tmp_path / "日本.png"), "-o", str(tmp_path / "t")]) == 0
    assert b"     5  \\u65e5\\u672c.png\n" in raw.getvalue()


@pytest.mark.parametrize("error", [errno.EPIPE, errno.EBADF])
@pytest.mark.parametrize("bad", [False, True])
def test_a_reader_that_is_gone_changes_neither_work_nor_exit_code(
    error: int, bad: bool, model: PatchModel, photos: Path, tmp_path: Path, monkeypatch: Any, capsys: Any
) -> None:
    if bad:
        (photos / "bad.png").touch()
    put_in_place_of_stdout(monkeypatch, Broken(error), "utf-8")
    assert main(["encode", str(photos), "-o", str(tmp_path / "t")]) == int(bad)
    assert ("bad.png' is empty" in capsys.readouterr().err) == bad and (tmp_path / "t").exists()


def test_a_full_disk_behind_the_report_is_a_sentence(monkeypatch: Any, capsys: Any) -> None:
    put_in_place_of_stdout(monkeypatch, Broken(errno.ENOSPC), "utf-8")
    assert main(["info"]) == 1
    assert capsys.readouterr().err.startswith("dove info: cannot write the output: No space left")


@pytest.mark.parametrize("shell", [">&-", ">&- 2>&-"])
def test_a_process_without_standard_output(shell: str, tmp_path: Path) -> None:
    Image.new("RGB", (16, 16)).save(tmp_path / "a.png")
    dove = [sys.executable, "-c", "import sys; from dove_ext.cli import main; sys.exit(main())"]
    command = [*dove, "encode", "a.png", "b.png", "-o", "t.safetensors", "--num-tokens", "1"]
    result = subprocess.run(
        ["sh", "-c", f'"$@" {shell}', "sh", *command], capture_output=True, text=True, cwd=tmp_path
    )
    assert result.returncode == 1 and len(DoveTokens.load(tmp_path / "t.safetensors")) == 1
    if "2>" not in shell:
        assert "Traceback" not in result.stderr and "b.png' does not exist" in result.stderr
