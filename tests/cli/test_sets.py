"""Sets of pictures in the verbs: shards, several folders, and what is said about the rest."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path
from typing import Any

import pytest
import torch

from dove_ext.cli.outputs import SUFFIX
from dove_ext.images.find import OWN_SUFFIX
from dove_ext.tokens import DoveTokens
from tests.cli.stand_in import PatchModel
from tests.cli.test_command import model, photos, run

__all__ = ["model", "photos"]  # fixtures


def test_shards_are_encoded_like_folders(
    model: PatchModel, photos: Path, tmp_path: Path, capsys: Any
) -> None:
    with tarfile.open(tmp_path / "s.tar", "w") as tar:
        for name in ("a.png", "b.JPG", "sub/a.png", "notes.txt"):
            tar.add(photos / name, name)
    tokens = []
    for source in (photos, tmp_path / "s.tar"):
        code, out, err = run(capsys, "encode", source, "-o", tmp_path / "t", "--json")
        assert (code, err) == (0, "")
        tokens.append(DoveTokens.load(tmp_path / "t"))
    assert torch.equal(tokens[0].tokens, tokens[1].tokens) and tokens[0].names == tokens[1].names
    assert json.loads(out)["items"][2]["path"] == f"{tmp_path / 's.tar'}: sub/a.png"
    assert run(capsys, "reconstruct", tmp_path / "s.tar", "-o", tmp_path / "out")[0] == 0
    assert (tmp_path / "out" / "a-2.dove.png").exists()


def test_two_folders_give_names_that_decode_tells_apart(
    model: PatchModel, photos: Path, tmp_path: Path, capsys: Any
) -> None:
    (photos / "a.png").rename(tmp_path / "photo")  # each folder holds one a.png
    (tmp_path / "photo").rename(photos / "sub" / "b.png")
    (photos / "other").mkdir()
    (photos / "sub" / "b.png").rename(photos / "other" / "a.png")
    run(capsys, "encode", photos / "sub", photos / "other", "-o", tmp_path / "t", "--num-tokens", "64")
    assert DoveTokens.load(tmp_path / "t").names == ("sub/a.png", "other/a.png")
    code, out, _ = run(capsys, "decode", tmp_path / "t", "-o", tmp_path / "out")
    first, second = (tmp_path / "out" / name for name in ("a.dove.png", "a-2.dove.png"))
    expected = f"64 {first} from sub/a.png 64 {second} from other/a.png"
    assert code == 0 and out.split() == expected.split()
    code, out, _ = run(capsys, "decode", tmp_path / "t", "-o", tmp_path / "out", "--json")
    assert [item["name"] for item in json.loads(out)["items"]] == ["sub/a.png", "other/a.png"]
    code, out, _ = run(capsys, "reconstruct", photos / "sub", photos / "other", "-o", tmp_path / "out")
    assert code == 0 and f"{first}  from sub/a.png" in out and f"{second}  from other/a.png" in out


def test_tar_files_beside_pictures_are_spoken_of(
    model: PatchModel, photos: Path, tmp_path: Path, capsys: Any
) -> None:
    tarfile.open(photos / "s.tar", "w").close()
    for _ in range(2):  # said each time
        code, _, err = run(capsys, "encode", photos, "-o", tmp_path / "t")
        expected = (
            f"dove encode: 1 .tar file is left out in '{photos}': it has pictures; name shards that are"
        )
        assert code == 0 and err.startswith(expected) and len(err.splitlines()) == 1


@pytest.mark.parametrize("command", [("encode",), ("reconstruct",), ("train",), ("eval", "lengths")])
def test_help_states_the_rule(command: tuple[str, ...], capsys: Any) -> None:
    code, out, _ = run(capsys, *command, "--help")
    words = " ".join(out.split())
    assert code == 0 and f"Passed over are names with a leading dot and *{OWN_SUFFIX}" in words
    assert SUFFIX == OWN_SUFFIX
