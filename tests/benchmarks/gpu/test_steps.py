"""Steps: time limits, one budget, what is left behind."""

from __future__ import annotations

import os
import sys
import tarfile
import time
from pathlib import Path

import pytest

from benchmarks.gpu import steps
from benchmarks.gpu.steps import Call, Step


def python(name: str, code: str, seconds: float = 30.0) -> Step:
    return Step(name, seconds, (sys.executable, "-S", "-c", code))


@pytest.fixture
def call(tmp_path: Path) -> Call:
    return Call(tmp_path / "out", 10.0, os.environ)


def summary(call: Call) -> list[str]:
    return (call.out / "summary.txt").read_text().splitlines()


def test_a_line_and_a_log_for_each_step(call: Call, capsys: pytest.CaptureFixture[str]) -> None:
    with call:
        assert call.run(python("good", "print('begins'); print('12 rows')"))
        assert not call.run(python("bad", "print('ValueError: no such row'); raise SystemExit(3)"))
        assert not call.run(Step("missing", 30, ("/no/such/program",)))
        assert call.findings() == ["1 x bad: ValueError: no such row"]
    lines = summary(call)
    assert "good: ok, 0 s: 12 rows" in lines[0]
    assert "bad: failed with exit code 3, 0 s: ValueError: no such row" in lines[1]
    assert "missing: failed with exit code 127, 0 s: /no/such/program cannot be started" in lines[2]
    assert call.failed == ["bad", "missing"]
    assert capsys.readouterr().out.splitlines() == lines
    with tarfile.open(call.out / "logs.tar.gz") as logs:
        assert {Path(name).name for name in logs.getnames()} == {"logs", "good.log", "bad.log", "missing.log"}
    assert {path.name for path in call.out.iterdir()} == {"summary.txt", "logs.tar.gz"}  # no records yet
    assert not call.work.exists()


def test_a_step_that_is_cut_off_leaves_what_it_wrote(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(steps, "SHORTEST", 0.0)
    monkeypatch.setattr(steps, "GRACE", 0.3)
    child = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True)"
    code = (
        f"import subprocess, sys, time; p = subprocess.Popen([sys.executable, '-S', '-c', {child!r} + "
        "'; time.sleep(60)']); print(p.pid, flush=True); time.sleep(60)"
    )
    (call.records / "eos.json").write_text("{}")
    begun = time.monotonic()
    assert not call.run(python("endless", code, seconds=1.5))
    assert time.monotonic() - begun < 10
    assert "endless: cut off after" in summary(call)[0]
    pid = next(int(line) for line in call.log_of("endless").splitlines() if line.isdecimal())
    for _ in range(100):  # killed with its parent; somebody has to reap it
        if not Path(f"/proc/{pid}").exists() or "State:\tZ" in Path(f"/proc/{pid}/status").read_text():
            break
        time.sleep(0.05)
    else:
        pytest.fail("a grandchild is still running")
    with tarfile.open(call.out / "records.tar.gz") as records:
        assert "records/eos.json" in records.getnames()


def test_the_budget_ends_all_steps(tmp_path: Path) -> None:
    given: list[float] = []

    def launch(command: object, environment: object, log: Path, seconds: float) -> int:
        given.append(seconds)
        return 0

    kept = steps.CLOSING_SECONDS / 60
    with Call(tmp_path / "out", kept + 0.5, {}, launch) as call:
        assert call.run(Step("short", 10, ["x"]))
        assert call.run(Step("long", 1000, ["x"]))
    with Call(tmp_path / "out", kept + 0.05, {}, launch) as call:
        assert not call.run(Step("late", 10, ["x"]))
        assert call.run(Step("report", 20, ["x"]), closing=True)
    assert "late: not begun, the time is spent" in summary(call)[0]
    assert call.failed == ["late"]
    assert given[0] == 10 and 29 < given[1] <= 30 and given[2] == 20


def test_work_beside(call: Call) -> None:
    with call:
        with call.beside(
            lambda: call.run(python("a", "print(1)")), lambda: call.run(python("b", "print(2)"))
        ):
            assert call.run(python("c", "print(3)"))
        assert sorted(line.split("] ")[1][0] for line in summary(call)) == ["a", "b", "c"]
        with pytest.raises(ValueError, match="lost"), call.beside(lambda: int("lost")):
            pass
        sleeper = python("sleeper", "import time; print('on', flush=True); time.sleep(60)")
        begun = time.monotonic()
        with pytest.raises(KeyboardInterrupt), call.beside(lambda: call.run(sleeper)):
            while "on" not in call.log_of("sleeper"):
                time.sleep(0.01)
            raise KeyboardInterrupt
        assert time.monotonic() - begun < 30, "what runs beside ends with the call"
