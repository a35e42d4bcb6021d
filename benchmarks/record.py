"""The record of a benchmark: command, commit, machine and rows as JSON, on disk again after every row."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from dove_ext.atomic import atomic_write

from .commit import of_tree

RESULTS = Path(__file__).resolve().parent / "results"


def numbers(text: str) -> tuple[int, ...]:
    """An option's value such as "1,8"."""
    values = tuple(int(part) for part in text.split(",") if part.isdecimal())
    if len(values) != len(text.split(",")) or min(values) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not whole numbers of at least 1, as in 1,8")
    return values


def arguments(description: str, *, seconds: float, threads: bool = True) -> argparse.ArgumentParser:
    """The options that every benchmark takes; `threads`: also --threads, for those that run on a CPU."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, metavar="PATH", help="also write the record to PATH")
    parser.add_argument("--seconds", type=float, default=seconds, help="per row (default %(default)s)")
    parser.add_argument("--quick", action="store_true", help="few rows: a check that everything runs")
    parser.add_argument("--batches", type=numbers, metavar="N[,N...]", help="only these numbers of images")
    if threads:
        parser.add_argument(
            "--threads", type=int, help="threads for both sides (default: torch's own choice)"
        )
    return parser


def machine() -> dict[str, Any]:
    """Processor, threads, and the versions that decide a timing."""
    import dove_ext

    model = platform.processor()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [
            line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line
        ]
        model = names[0] if names else model
    return {
        "processor": model,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "isa": dove_ext.info()["backends"]["cpu"]["isa"],
        "torch": torch.__version__,
        "python": platform.python_version(),
        "dove_ext": dove_ext.info()["version"],
    }


def commit() -> str:
    """The commit that is measured, see `commit.of_tree`; where nobody knows it, "unknown", and it is said."""
    found = of_tree()
    if found is None:
        print(
            "The record's commit will be unknown: this tree has no .git, and its clone's "
            "`benchmarks/gpu/run.sh prepare` wrote nothing down.",
            file=sys.stderr,
        )
    return found or "unknown"


def print_row(label: str, result: Mapping[str, Any]) -> None:
    """One line: the median time of each candidate, then each speed-up with its 20-80% range.

    Where they are known, below it: the floor, and the candidates that did not run.
    """
    times = "  ".join(f"{name} {1e-3 * s['median']:9.3f} ms" for name, s in result["time_us"].items())
    ratios = "  ".join(
        f"x{name} {s['median']:6.2f} ({s['q20']:.2f}-{s['q80']:.2f})" for name, s in result["speedup"].items()
    )
    print(f"{label:38s} {times}   {ratios}", flush=True)
    if result.get("of_floor") is not None:
        floor = f"floor {1e-3 * result['floor_us']:.4f} ms, ours {result['of_floor']:.2f}x of it"
        print(f"{'':38s} {floor}", flush=True)
    for name, why in result.get("missing", {}).items():
        print(f"{'':38s} {name}: {why}", flush=True)


def write(path: Path, benchmark: str, measured: str, **fields: Any) -> None:
    """Write a record: which benchmark, at which commit, now, and its own fields."""
    utc = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    record = {"benchmark": benchmark, "commit": measured, "utc": utc, **fields}
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


class Record:
    """The rows of one run, printed as they come; what is on disk is whole, whenever the run is cut off.

    Args:
        benchmark: name of the module below `benchmarks`, as in "ops.eos".
        path: of the JSON file; None: nothing is written.
        options: the command line behind the module's name; None: that of the process.
        facts: further facts about the machine.
    """

    def __init__(
        self,
        benchmark: str,
        path: Path | None,
        options: Sequence[str] | None = None,
        facts: Mapping[str, Any] | None = None,
    ) -> None:
        given = sys.argv[1:] if options is None else options
        # Without the machine's own paths: the options as given but for where the record goes.
        kept = [path.name if path is not None and o == str(path) else o for o in given]
        self.path, self.benchmark = path, benchmark
        self.command = ["python", "-m", f"benchmarks.{benchmark}", *kept]
        self.commit = commit()
        self.machine = {**machine(), **(facts or {})}
        self.rows: list[dict[str, Any]] = []

    def add(self, label: str, setting: Mapping[str, Any], result: Mapping[str, Any]) -> None:
        """Print a row and write the record with it.

        Args:
            label: of the printed line.
            setting: what was measured: the row's first fields.
            result: as `timing.compare` returns it, and what belongs to it.
        """
        print_row(label, result)
        self.rows.append({**setting, **result})
        if self.path is not None:
            write(
                self.path, self.benchmark, self.commit,
                command=self.command, machine=self.machine, rows=self.rows,
            )  # fmt: skip
