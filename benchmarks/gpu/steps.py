"""Steps of a call on a borrowed GPU: a time limit for each, one budget for all, and few files in the end.

Nothing of torch is imported here: what runs the steps must not break with them.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import tarfile
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

GRACE = 5.0
"""Seconds between asking a step to end and killing it."""
CLOSING_SECONDS = 25.0
"""Of the budget, for what comes behind all steps: the report, and a last step's end."""
SHORTEST = 5.0
"""A step that would have less than this is not begun."""

_FINDING = re.compile(
    r"FAILED\b|ERROR\b|[\w.]*(Error|Exception): |=+ (Invalid|Error|Warning: Race|Program hit)"
)

Launch = Callable[[Sequence[str], Mapping[str, str], Path, float], "int | None"]


@dataclass(frozen=True)
class Step:
    """One command.

    Attributes:
        name: in the summary, and of its log.
        seconds: at most so long.
        command: program and arguments.
        environment: what it gets beyond the call's.
    """

    name: str
    seconds: float
    command: Sequence[str]
    environment: Mapping[str, str] = field(default_factory=dict)


class Call:
    """Runs steps and keeps what they leave.

    `out` gets summary.txt with a line for each step, logs.tar.gz and records.tar.gz, each whole after every
    step, and what the call itself puts there.

    Args:
        out: folder for what is to be brought back; made if it is not there.
        minutes: for all steps together.
        environment: of the steps.
        launch: runs a command, see `launch`; tests have one of their own.
        patience: so many times as long as it says a step may take: a dry run's machine may be slow.

    Attributes:
        logs: folder of the steps' output, one file each.
        records: folder for the records that steps write.
        failed: names of steps that failed, were cut off or not begun.
    """

    def __init__(
        self,
        out: Path,
        minutes: float,
        environment: Mapping[str, str],
        launch: Launch | None = None,
        patience: float = 1.0,
    ) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="dove-gpu-")
        self.out, self.work = out, Path(self._folder.name)
        self.logs, self.records = self.work / "logs", self.work / "records"
        for folder in (out, self.logs, self.records):
            folder.mkdir(parents=True, exist_ok=True)
        self.environment, self.failed, self.patience = dict(environment), list[str](), patience
        self._begun = time.monotonic()
        self._end = self._begun + 60 * minutes
        self._processes, self._lock = Processes(), threading.Lock()
        self._launch = launch or self._processes.launch
        (out / "summary.txt").write_text("")

    def __enter__(self) -> Call:
        return self

    def __exit__(self, *_: object) -> None:
        self.bundle()
        self._folder.cleanup()

    def left(self) -> float:
        """Seconds of the budget that steps may still use."""
        return self._end - CLOSING_SECONDS - time.monotonic()

    def note(self, text: str) -> None:
        """A line of the summary, which is printed too."""
        line = f"[{time.monotonic() - self._begun:4.0f} s] {text}"
        with self._lock:
            print(line, flush=True)
            with (self.out / "summary.txt").open("a", encoding="utf-8") as summary:
                summary.write(line + "\n")

    def run(self, step: Step, *, closing: bool = False) -> bool:
        """Whether the step ended well. It gets the rest of the budget if that is less than its limit.

        Args:
            step: what to run.
            closing: it has the time that is kept for it, whatever is left.
        """
        limit = step.seconds * self.patience
        limit = limit if closing else min(limit, self.left())
        if limit < SHORTEST:
            return self._failed(step, "not begun, the time is spent")
        begun, log = time.monotonic(), self.logs / f"{step.name}.log"
        code = self._launch(step.command, {**self.environment, **step.environment}, log, limit)
        took = f"{time.monotonic() - begun:.0f} s"
        lines = [line.strip() for line in self.log_of(step.name).splitlines() if line.strip()]
        last = lines[-1][:160] if lines else "no output"
        if code == 0:
            self.note(f"{step.name}: ok, {took}: {last}")
        else:
            what = f"cut off after {took}" if code is None else f"failed with exit code {code}, {took}"
            self._failed(step, f"{what}: {last}")
        self.bundle()
        return code == 0

    def _failed(self, step: Step, text: str) -> bool:
        self.failed.append(step.name)
        self.note(f"{step.name}: {text}")
        return False

    @contextmanager
    def beside(self, *work: Callable[[], object]) -> Iterator[None]:
        """Do some work, steps as well, at the same time as the body; it ends when all of it has ended."""
        with ThreadPoolExecutor(max(1, len(work))) as pool:
            futures = [pool.submit(each) for each in work]
            try:
                yield
            except BaseException:
                self._processes.end_all()  # or the pool would wait for them
                raise
            for future in futures:
                future.result()

    def log_of(self, name: str) -> str:
        """What a step has printed so far."""
        path = self.logs / f"{name}.log"
        return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""

    def bundle(self) -> None:
        """Put logs and records, as far as they are there, into `out`."""
        with self._lock:
            for folder in (self.logs, self.records):
                if any(folder.iterdir()):
                    pack(folder, self.out / f"{folder.name}.tar.gz")

    def findings(self, most: int = 40) -> list[str]:
        """Lines of all logs that speak of a failure, the most frequent first, with their number."""
        counts = Counter(
            f"{log.stem}: {line.strip()[:200]}"
            for log in sorted(self.logs.iterdir())
            for line in self.log_of(log.stem).splitlines()
            if _FINDING.match(line)
        )
        return [f"{count} x {line}" for line, count in counts.most_common(most)]


def pack(folder: Path, target: Path) -> None:
    """A folder as a .tar.gz, which is whole whenever it is there."""
    temporary = target.with_name(target.name + ".part")
    with tarfile.open(temporary, "w:gz") as archive:
        archive.add(folder, folder.name)
    temporary.replace(target)


class Processes:
    """Commands in process groups of their own, which end with the call that waits for them."""

    def __init__(self) -> None:
        self._running: set[subprocess.Popen[bytes]] = set()

    def launch(
        self, command: Sequence[str], environment: Mapping[str, str], log: Path, seconds: float
    ) -> int | None:
        """Run a command with its output in `log`; its exit code, None if it was cut off after `seconds`."""
        with log.open("ab") as output:
            try:
                process = subprocess.Popen(
                    command, env=environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
                )
            except OSError as error:
                output.write(f"{command[0]} cannot be started: {error.strerror}\n".encode())
                return 127
        self._running.add(process)
        try:
            return process.wait(seconds)
        except subprocess.TimeoutExpired:
            return None
        finally:
            end(process)
            self._running.discard(process)

    def end_all(self) -> None:
        """End what others wait for."""
        for process in list(self._running):
            end(process)


def end(process: subprocess.Popen[bytes], grace: float = GRACE) -> None:
    """Ask a process and all that it started to end, and kill what has not after `grace` seconds."""
    if process.poll() is not None:
        return
    for number, wait in ((signal.SIGTERM, grace), (signal.SIGKILL, GRACE)):
        try:
            os.killpg(process.pid, number)  # the second time also what the first left without its parent
            process.wait(wait)
        except (ProcessLookupError, subprocess.TimeoutExpired):
            continue
