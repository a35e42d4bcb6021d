"""The verb `dove tokenize`: exit codes, one sentence for what is wrong, and what it says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.cli.called import run
from tests.data.small import contents, folder_of, tar_of


def options(model: Path) -> tuple[Any, ...]:
    return "--model", model, "--shard-size", 4, "--batch-size", 2, "--workers", 1


def test_a_set_is_made_checked_and_found_again(
    model: Path, pictures: Path, made: Path, tmp_path: Path, capsys: Any
) -> None:
    code, out, err = run(capsys, "tokenize", pictures, tmp_path / "t", *options(model))
    assert (code, err) == (0, "") and out.startswith("10 pictures, ") and "in 3 shards in" in out
    assert contents(tmp_path / "t") == contents(made)
    code, out, _ = run(capsys, "tokenize", pictures, tmp_path / "t", *options(model), "--json")
    assert code == 0 and (json.loads(out)["made"], json.loads(out)["shards"]) == (0, 3)
    assert run(capsys, "tokenize", "--verify", tmp_path / "t") == (0, f"{tmp_path / 't'} is whole\n", "")
    shard = next((tmp_path / "t").rglob("000000001.safetensors"))
    shard.write_bytes(shard.read_bytes()[:-1])
    code, out, _ = run(capsys, "tokenize", "--verify", tmp_path / "t")
    assert code == 1 and "000000001.safetensors is damaged or cut short" in out
    code, out, _ = run(capsys, "tokenize", "--verify", tmp_path / "t", "--json")
    assert code == 1 and len(json.loads(out)["wrong"]) == 1


def test_the_exit_code_tells_of_unreadable_pictures(model: Path, tmp_path: Path, capsys: Any) -> None:
    source = folder_of(tmp_path / "source")
    (source / "n0" / "4.png").write_bytes(b"no picture")
    command = ("tokenize", source, tmp_path / "t", *options(model))
    code, _, err = run(capsys, *command, "--max-unreadable", 0)
    assert code == 1 and "0 of 10 may be" in err and len(err.splitlines()) == 1
    code, out, _ = run(capsys, *command)
    assert code == 3 and "9 pictures" in out and "cannot be read: 'n0/4.png' is not a picture" in out
    code, out, _ = run(capsys, *command, "--max-unreadable", "20%", "--json")
    assert code == 3 and json.loads(out)["unreadable"][0]["key"] == "n0/4.png"


def test_wrong_command_lines_and_inputs_are_one_sentence(
    model: Path, pictures: Path, tmp_path: Path, capsys: Any
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("in the way")
    (tmp_path / "twice.tar").write_bytes(tar_of(tmp_path / "one.tar", 2).read_bytes() * 2)
    here = options(model)
    t = tmp_path / "t"
    for arguments, code, message in (
        ((pictures,), 2, "give pictures and, last, the folder"),
        (("--verify", pictures, t), 2, "--verify takes one folder"),
        (("--verify", pictures), 1, "no plan of `dove tokenize` is there"),
        ((tmp_path / "none", t, *here), 1, "none' does not exist"),
        ((tmp_path / "empty", t, *here), 1, "empty' is a folder without pictures"),
        ((tmp_path / "twice.tar", t, *here), 1, "the key '0.png' is there twice"),
        ((pictures, tmp_path / "file", *here), 1, "a file is in the way"),
        ((pictures, t, "--model", "nowhere"), 1, "there is no model at 'nowhere'"),
        ((pictures, t, *here, "--device", "gpu"), 2, "device 'gpu' is unknown"),
        ((pictures, t, *here, "--query", "a", "--query-column", "b"), 2, "drop one of them"),
        ((pictures, t, *here, "--query-column", "b"), 1, "is no parquet file"),
        ((pictures, t, *here, "--query", "a"), 1, "query"),
        ((pictures, tmp_path / "u", *here, "--drop-empty"), 1, "drop_empty"),
        ((pictures, tmp_path / "v", *here, "--tiles", 4, "--num-tokens", 99), 1, "must be at most 64"),
        ((pictures, t, *here, "--tiles", 4, "--fit", "pad"), 2, "drop it or --tiles"),
        ((pictures, t, *here, "--num-tokens", 4, "--target-psnr", 20), 2, "--num-tokens decides"),
    ):
        found, out, err = run(capsys, "tokenize", *arguments)
        assert (found, out) == (code, "") and message in err and len(err.splitlines()) == 1, err
    for arguments in (("--token-budget", 9), ("--max-unreadable", "100%"), ("--shard-size", 0)):
        assert run(capsys, "tokenize", pictures, t, *arguments)[0] == 2
    assert not list(tmp_path.rglob("manifest.json"))


def test_ray_is_asked_for_by_name_where_it_is_missing(
    model: Path, pictures: Path, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    code, _, err = run(capsys, "tokenize", pictures, tmp_path / "t", *options(model), "--engine", "ray")
    assert code == 1 and "pip install 'dove-ext[ray]'" in err


def test_progress_tells_speed_and_what_is_left(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from dove_data.progress import Progress
    from dove_data.shards import Row

    progress = Progress(40)
    progress.add(Row(0, 10, 300, 1, "", (), made=False))
    assert progress.line(1.0) == "10 of 40 pictures"
    progress.add(Row(1, 8, 160, 1, "", ((1, "why"), (2, "why")), made=True))
    assert progress.line(60.0) == (
        "20 of 40 pictures, 0.2 pictures/s, 3 tokens/s, mean length 16.0, 2 minutes left"
    )
    progress._said -= 100
    progress.add(Row(2, 10, 200, 1, "", (), made=True))
    assert "dove tokenize: 30 of 40 pictures" in capsys.readouterr().err
    progress.close()
