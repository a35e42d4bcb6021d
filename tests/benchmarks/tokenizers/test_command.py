"""`dove bench`: its options, real runs, and what it says where there is no clone."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest

import dove_ext.cli
from benchmarks.tokenizers import build, flops, report, systems


def test_wrong_input(bench: Any, tmp_path: Path) -> None:
    (tmp_path / "text.json").write_text("{")
    (tmp_path / "file").write_text("")
    for arguments, code, text in (
        (["--report", tmp_path / "none.json"], 1, "No such file"),
        (["--report", tmp_path / "text.json"], 1, "is not JSON"),
        (["--device", "abacus"], 2, "--device 'abacus' is unknown"),
        (["--device", "mps"], 2, "--device 'mps' cannot be measured"),
        (["--device", "cuda:99"], 1, "--device 'cuda:99' is not there"),
        (["--threads", "0"], 2, "'0' is not a whole number of at least 1"),
        (["--weights", "vqgan=no/file"], 2, "there is no checkpoint 'no/file'"),
        (["--weights", "flextok=x"], 2, "'flextok=x' is not NAME=PATH with a NAME of dove-base, vqgan"),
        (["--quick", "--full"], 2, "not allowed with argument"),
        (["--only", "flextok"], 2, "of such a name there is none in VQGAN-256, dove-base-32"),
        (["--full", "-o", tmp_path / "file"], 1, "a file is in the way"),
    ):
        found, out, err = bench(*arguments)
        assert (found, out) == (code, ""), arguments
        assert text in err


def test_help_shows_the_options(bench: Any) -> None:
    code, out, _ = bench("--help")
    assert code == 0
    for option in ("--quick", "--full", "--report", "--output", "--only", "--device", "--threads", "--json"):
        assert option in out
    assert "example:\n  dove bench --quick" in out


def test_a_short_run_end_to_end(bench: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = systems.find("dove-tiny-own", build.OURS_FP32)
    stages = ("encode", "VQGAN encoder", build.GENERATOR, "decode", "token decoder", "VQGAN decoder")
    plan = [systems.Group("encode, batch 8", stages, ((tiny, 2),), 0.0, 1)]
    monkeypatch.setattr(systems, "plan", lambda quick, only=(): plan)
    cases = [(tiny, 2)] if sys.platform.startswith("linux") else []
    monkeypatch.setattr(systems, "memory_cases", lambda quick, only=(): cases)
    monkeypatch.setattr(flops, "table", lambda only=(): [])
    monkeypatch.setattr("dove_ext.memory.keep_freed_memory", lambda: None)  # outlives the test
    code, out, _ = bench("--quick", "--json")
    assert code == 0
    found = json.loads(out)
    assert [r["stage"] for r in found["rows"]] == list(stages)
    assert all(len(r["seconds"]) == 1 for r in found["rows"])
    assert len(found["rows"][0]["lengths"]) == 2
    assert all(r["peak_mib"] > 1 for r in found["memory"])
    (tmp_path / "bench.json").write_text(json.dumps(found))
    assert report.read_record(tmp_path / "bench.json") == found
    assert "dove-tiny-own" in report.markdown(found)


def test_the_command_runs_as_it_stands(tmp_path: Path) -> None:
    """With the installed entry point, and no part of it replaced; FLOPs are counted on the meta device."""
    code = "import sys; from dove_ext.cli import main; sys.exit(main())"
    done = subprocess.run(
        [sys.executable, "-c", code, "bench", "--quick", "--only", "dove-tiny", "--json"],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert [(r["group"], r["system"]) for r in found["rows"]] == [("encode, batch 8", "dove-tiny-own")]
    assert len(found["rows"][0]["lengths"]) == 8 and found["memory"] == []
    counted = {r["stage"]: r["gflop"] for r in found["gflop"]}
    assert counted["encode"] > 1 and counted["decode"] > 1
    assert not list(tmp_path.iterdir())


# --- A wheel has no benchmarks ----------------------------------------------------------------------------


def clone_verb(monkeypatch: pytest.MonkeyPatch, module: str) -> None:
    entry = EntryPoint("bench", f"{module}:command", "dove.commands.clone")
    monkeypatch.setattr(dove_ext.cli, "entry_points", lambda group: [entry] if group == entry.group else [])


@pytest.mark.parametrize("module", ["no_such_package.tokenizers.cli", "dove_ext.no_such_folder.cli"])
def test_without_a_clone_the_verb_is_unlisted_and_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], module: str
) -> None:
    clone_verb(monkeypatch, module)
    assert dove_ext.cli.main(["--help"]) == 0
    assert "bench" not in capsys.readouterr().out
    assert dove_ext.cli.main(["bench", "--quick"]) == 1
    assert capsys.readouterr().err == (
        "dove bench: runs in a clone of the repository only: git clone it, then "
        "pip install -e '.[bench]' there\n"
    )


def test_a_broken_verb_of_the_clone_is_not_called_absent(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "broken_clone_verb.py").write_text("import no_such_dependency\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    clone_verb(monkeypatch, "broken_clone_verb")
    assert dove_ext.cli.main(["bench"]) == 1
    assert "cannot be loaded from broken_clone_verb:command" in capsys.readouterr().err
