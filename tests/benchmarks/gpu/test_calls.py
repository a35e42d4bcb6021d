"""benchmarks/gpu/run.sh: refusals, and both calls as dry runs.

Most steps run in this process, since loading torch for each would take most of the time.
"""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tarfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

import dove_ext
from benchmarks import commit
from benchmarks.gpu import cli, device, steps, train
from benchmarks.gpu.calls import Steps
from dove_ext import DoveModel

ROOT = Path(__file__).parents[3]
SCRIPT = ROOT / "benchmarks" / "gpu" / "run.sh"
Command = Sequence[str]


def run(tmp_path: Path, *arguments: str, gpu: str | None = None) -> subprocess.CompletedProcess[str]:
    """The script with a PATH on which nvidia-smi prints `gpu`, or is missing."""
    tools = tmp_path / "bin"
    tools.mkdir(exist_ok=True)
    for tool in ("dirname", "bash", "env", "git"):
        if not (tools / tool).exists():
            (tools / tool).symlink_to(
                f"/usr/bin/{tool}" if Path(f"/usr/bin/{tool}").exists() else f"/bin/{tool}"
            )
    if gpu is not None:
        (tools / "nvidia-smi").write_text(f"#!/bin/bash\necho '{gpu}'\n")
        (tools / "nvidia-smi").chmod(0o755)
    return subprocess.run(
        ["/bin/bash", str(SCRIPT), *arguments],
        env={"PATH": str(tools), "PYTHON": sys.executable, "HOME": os.environ.get("HOME", "/")},
        capture_output=True, text=True, check=False,
    )  # fmt: skip


# --- Refusals -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ([], "the following arguments are required: verb"),
        (["check", "--fast"], "unrecognized arguments: --fast"),
        (["measure", "--seconds", "long"], "invalid float value: 'long'"),
        (
            ["measure", "--only", "eos,sorting"],
            "--only: there is no 'sorting'; choose from encode, generator",
        ),
        (["check", "--only", "train"], "--only: there is no 'train'; choose from memcheck"),
    ],
)
def test_wrong_arguments(tmp_path: Path, arguments: list[str], text: str) -> None:
    result = run(tmp_path, *arguments)
    assert result.returncode == 2
    assert text in result.stderr
    assert not result.stdout


def test_refuses_without_a_gpu(tmp_path: Path) -> None:
    out = tmp_path / "records"
    for gpu, text in (
        (None, "no GPU here (nvidia-smi was not found)"),
        ("No devices were found", "nvidia-smi lists no GPU"),
    ):
        result = run(tmp_path, "check", "--out", str(out), gpu=gpu)
        assert result.returncode == 2
        assert text in result.stderr
        assert not out.exists()


def test_refuses_where_nobody_knows_the_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", f"{ROOT / 'benchmarks/gpu/stand_ins'}:{os.environ['PATH']}")
    monkeypatch.setattr(commit, "of_tree", lambda: None)
    assert cli.main(["measure", "--out", str(tmp_path / "out")]) == 2
    assert "nobody knows which commit this is: there is no .git here" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_another_folder_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    assert cli.main(["check", "--dry-run", "--out", str(tmp_path)]) == 2
    assert "is not empty, and no call has written it" in capsys.readouterr().err
    (tmp_path / "summary.txt").touch()
    assert cli.main(["measure", "--dry-run", "--out", str(tmp_path), "--train-from", str(tmp_path)]) == 2
    assert "is also --train-from" in capsys.readouterr().err
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


@pytest.mark.skipif(dove_ext.info()["backends"]["cuda"]["available"], reason="there is a GPU")
def test_says_why_kernels_cannot_run() -> None:
    with pytest.raises(SystemExit, match="needs a GPU and CUDA kernels: "):
        device.require_gpu()


# --- Dry runs -----------------------------------------------------------------------------------------------


def in_this_process(
    command: Command, environment: Mapping[str, str], log: Path, seconds: float
) -> int | None:
    """A step's module, called instead of started."""
    assert command[:2] == (sys.executable, "-m") or command[1] == "-c", command
    with log.open("a") as output, redirect_stdout(output):
        if command[1] == "-c":
            compile(command[2], "step", "exec")
            return 0
        try:
            return int(import_module(command[2]).main(list(command[3:])))
        except SystemExit as error:
            print(error)
            return 2


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """What would outlive a step in this process, and a smaller step of training."""
    monkeypatch.setattr(device, "name", device.name)
    monkeypatch.setattr("benchmarks.ops.training.QUICK_SIZE", 32)
    monkeypatch.setattr("benchmarks.ops.training.keep_freed_memory", lambda: None)
    monkeypatch.setattr("benchmarks.ops.training.peak_mib", lambda *_: 1.0)  # two processes a row
    monkeypatch.chdir(ROOT)


def unpacked(path: Path) -> dict[str, bytes]:
    with tarfile.open(path) as archive:
        members = [member for member in archive.getmembers() if member.isfile()]
        return {Path(m.name).name: archive.extractfile(m).read() for m in members}  # type: ignore[union-attr]


@pytest.mark.usefixtures("small", "one_thread")
def test_measure_as_a_dry_run(tmp_path: Path) -> None:
    out = tmp_path / "out"
    code = cli.main(["measure", "--dry-run", "--out", str(out)], in_this_process)
    summary = (out / "summary.txt").read_text()
    assert code == 0, summary
    assert [line.split("] ")[1].split(":")[0] for line in summary.splitlines()] == [
        "measure", "import", *Steps.MEASURE, "report", "failed or not run",
    ]  # fmt: skip
    assert len(list(out.iterdir())) <= cli.MOST_FILES
    records = {name: json.loads(data) for name, data in unpacked(out / "records.tar.gz").items()}
    assert set(records) == {f"{name}.json" for name in Steps.MEASURE if name != "train"}
    assert all(r["rows"] and r["commit"] and r["utc"] for r in records.values())
    for name, record in records.items():
        for row in record["rows"]:
            # Attention's peers need a GPU or a package; any other would be missing there, too.
            assert name == "attention.json" or not row.get("missing"), (name, row)
            if name in ("encode-compiled.json", "eos.json", "group_norm.json"):
                assert row["compiled"] == 1, "the peer under torch.compile ran compiled"
    assert set(records["encode.json"]["rows"][0]["time_us"]) == {
        "ours", "ours, blocks", "VQGAN-256 eager", "VQGAN-256 graph", "ALIT-128 eager", "ALIT-128 graph",
    }  # fmt: skip
    text = (out / "report.md").read_text()
    assert text.count("Not measured.") == 1, "all but pack"
    # The model comes back in parts, and training can go on from them.
    rest = unpacked(out / "train.tar.gz")
    assert {"config.json", "README.md", "log.jsonl", "commit.txt"} <= rest.keys()
    model = DoveModel.from_pretrained(train.put_together(out, tmp_path / "whole"))
    assert model.config.image_size == 64
    given = ["--pack", "none", "--work", str(tmp_path / "work"), "--out", str(tmp_path), "--seconds", "9"]
    assert train.main([*given, "--dry-run", "--from", str(out), "--stages", "head"]) == 0
    assert json.loads((tmp_path / "work/run/log.jsonl").read_text().splitlines()[-1])["step"] == 1


@pytest.mark.usefixtures("small", "one_thread")
def test_check_as_a_dry_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the quick figures the one that `measure` does not have; the rest runs in the next test."""
    monkeypatch.setattr(Steps, "QUICK", ("pack",))
    out = tmp_path / "out"
    code = cli.main(["check", "--dry-run", "--only", "models,quick", "--out", str(out)], in_this_process)
    assert code == 0, (out / "summary.txt").read_text()
    assert "14 comparisons, 0 failures" in (out / "summary.txt").read_text()
    assert set(unpacked(out / "records.tar.gz")) == {"quick-pack.json"}
    assert (out / "report.md").read_text().count("Not measured.") == 7, "all but pack"


def test_the_script_with_stand_ins(tmp_path: Path) -> None:
    """Processes, as they are started on a GPU: the module, the sanitizer around it, the table."""
    done = subprocess.run(
        ["bash", str(SCRIPT), "check", "--dry-run", "--only", "memcheck,table", "--out", str(tmp_path)],
        env={**os.environ, "PYTHON": sys.executable}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert "commit " in lines[0] and "a dry run" in lines[0]
    assert any("import: ok" in line and "'cpu'" in line for line in lines)
    assert any("memcheck: ok" in line and "ERROR SUMMARY: 0 errors" in line for line in lines)
    (table,) = (line for line in lines if "table: ok" in line)
    assert " passed" in table
    logs = unpacked(tmp_path / "logs.tar.gz")
    assert b"2 rows, 0 failures" in logs["memcheck.log"]


# --- When something goes wrong ------------------------------------------------------------------------------


def call_with(tmp_path: Path, verb: str, launch: steps.Launch, *more: str) -> tuple[Steps, steps.Call]:
    options = cli.parser().parse_args([verb, "--dry-run", "--out", str(tmp_path / "out"), *more])
    call = steps.Call(options.out, options.minutes, cli.environment(True), launch)
    return Steps(call, options), call


def launched(
    answer: Callable[[Command], int],
) -> tuple[list[tuple[Command, Mapping[str, str]]], steps.Launch]:
    """Commands that would have been started, and a launch that answers for them."""
    commands: list[tuple[Command, Mapping[str, str]]] = []

    def launch(command: Command, environment: Mapping[str, str], log: Path, seconds: float) -> int:
        commands.append((command, environment))
        return answer(command)

    return commands, launch


def test_what_does_not_load_is_built_there(tmp_path: Path) -> None:
    commands, launch = launched(lambda command: int("-c" in command and len(commands) == 1))
    chosen, call = call_with(tmp_path, "check", launch)
    assert chosen.usable() and not call.failed
    (_, _), (build, environment), (_, _) = commands
    assert build[1:] == ("setup.py", "-q", "build_ext", "--inplace")
    assert environment["CMAKE_ARGS"] == "-DDOVE_CUDA_ARCHITECTURES=90a-real"
    commands, launch = launched(lambda command: 1)
    chosen, call = call_with(tmp_path / "again", "check", launch)
    assert not chosen.usable()
    assert call.failed == ["build"] and len(commands) == 2


def test_a_filter_that_is_refused_is_left_out(tmp_path: Path) -> None:
    commands, launch = launched(lambda command: int("--kernel-name" in command))
    chosen, call = call_with(tmp_path, "check", launch)
    chosen.sanitize("racecheck")
    (first, environment), (second, _) = commands
    assert "kns=dove" in first and "kns=dove" not in second
    assert second[second.index("--tool") + 1] == "racecheck"
    assert environment["PYTORCH_NO_CUDA_MEMORY_CACHING"] == environment["OMP_NUM_THREADS"] == "1"
    assert call.failed == []


def test_findings_of_the_sanitizer_are_not_tried_again(tmp_path: Path) -> None:
    def launch(command: Command, environment: Mapping[str, str], log: Path, seconds: float) -> int:
        log.write_text("========= Invalid __global__ read of size 4\n28 rows, 0 failures, 9 s\n")
        return 9

    chosen, call = call_with(tmp_path, "check", launch)
    chosen.sanitize("memcheck")
    assert call.failed == ["memcheck"]
    assert call.findings() == ["1 x memcheck: ========= Invalid __global__ read of size 4"]


def test_check_takes_the_first_step_of_training(tmp_path: Path) -> None:
    """As `measure` does in a dry run, also on a GPU."""
    commands, launch = launched(lambda command: 0)
    chosen, call = call_with(tmp_path, "measure", launch, "--only", "train")
    chosen.measure()
    call.run(chosen.first_step(40))
    (in_measure, _), (in_check, _) = commands
    options = [[word for word in command if word.startswith("--")] for command in (in_measure, in_check)]
    assert options[0] == options[1] == ["--pack", "--work", "--out", "--seconds", "--dry-run"]
    assert in_measure[:3] == in_check[:3] and not call.failed


def test_training_gets_the_time_that_is_left(tmp_path: Path) -> None:
    commands, launch = launched(lambda command: 0)
    chosen, _ = call_with(
        tmp_path, "measure", launch, "--minutes", "4", "--stages", "joint", "--only", "train"
    )
    chosen.dry = []
    chosen.measure()
    ((command, _),) = commands
    seconds = int(command[command.index("--seconds") + 1])
    assert 205 <= seconds <= 215
    assert command[-2:] == ("--stages", "joint") and "--dry-run" not in command
    chosen, call = call_with(tmp_path / "late", "measure", launch, "--minutes", "1", "--only", "train")
    chosen.dry = []
    chosen.measure()
    assert call.failed == ["train"] and len(commands) == 1


def test_what_dove_train_is_given(tmp_path: Path) -> None:
    pack = tmp_path / "pack"
    pack.mkdir()
    parser = {"pack": pack, "work": tmp_path / "work", "out": tmp_path, "seconds": 165.0, "start": None}

    def options(**changes: Any) -> Any:
        return type("Options", (), {**parser, "stages": None, "dry_run": False, **changes})

    with pytest.raises(SystemExit, match="holds no photographs"):
        train.command_line(options())
    for name in ("train.tar", "validation.tar"):
        (pack / name).touch()
    with redirect_stdout(io.StringIO()) as said:
        given = train.command_line(options())
    aligned = ["features", "semantics", "readers", "together"]
    assert f"left out: {', '.join(aligned)}, since" in said.getvalue()
    assert given[given.index("--stage") + 1 :][: len(aligned)] == [f"{name}.steps=0" for name in aligned]
    assert given[given.index("--minutes") + 1] == "2.00"
    (pack / "mobilenet_v2-b0353104.pth").touch()
    given = train.command_line(options())
    assert "--stage" not in given and "--alignment-weights" in given
    given = train.command_line(options(stages="features,head"))
    assert given[given.index("--stage") + 1] == "joint.steps=0"
    known = "joint, features, semantics, readers, together, head"
    with pytest.raises(SystemExit, match=f"--stages: there is no 'tail'; choose from {known}"):
        train.command_line(options(stages="tail"))
    with pytest.raises(SystemExit, match="holds no model"):
        train.command_line(options(start=tmp_path))


def test_what_does_not_fit_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(cli, "MOST_BYTES", 10)
    _, launch = launched(lambda command: 0)
    assert cli.main(["check", "--dry-run", "--only", "table", "--out", str(tmp_path / "out")], launch) == 1
    assert "too large: ['summary.txt'" in capsys.readouterr().err
