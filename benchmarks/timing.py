"""What every benchmark here shares: interleaved pairs, their statistics, the machine, and the record.

Two candidates are never timed one after the other but in turns, and what is reported is the median of the
ratios of neighbouring runs: a load that comes and goes on the machine then strikes both alike.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch


def quantile(values: Sequence[float], share: float) -> float:
    """The value below which `share` (0..1) of `values` lies, linearly interpolated."""
    ordered = sorted(values)
    position = share * (len(ordered) - 1)
    below = int(position)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (position - below) * (ordered[above] - ordered[below])


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median with the 20% and 80% quantiles."""
    return {
        "median": statistics.median(values),
        "q20": quantile(values, 0.2),
        "q80": quantile(values, 0.8),
    }


def interleave(
    candidates: Mapping[str, Callable[[], Any]],
    *,
    seconds: float = 2.0,
    min_rounds: int = 5,
    max_rounds: int = 200,
    warmup: int = 2,
    slow: Collection[str] = (),
) -> dict[str, list[float]]:
    """Time the candidates in turns, one call of each per round.

    Args:
        candidates: name -> function without arguments. On a GPU the function must synchronise.
        seconds: stop after the round that exceeds this (never before `min_rounds`).
        min_rounds: at least so many rounds.
        max_rounds: at most so many rounds.
        warmup: unmeasured rounds before the first.
        slow: candidates that are left out of the warm-up and of the rounds behind the first `min_rounds`.

    Returns:
        dict: name -> seconds per call, one entry per round; entry i of all names is from the same round.
    """
    for _ in range(warmup):
        for name, call in candidates.items():
            if name not in slow:
                call()
    times: dict[str, list[float]] = {name: [] for name in candidates}
    end = time.perf_counter() + seconds
    for done in range(max_rounds):
        if done >= min_rounds and time.perf_counter() > end:
            break
        for name, call in candidates.items():
            if name in slow and done >= min_rounds:
                continue
            start = time.perf_counter()
            call()
            times[name].append(time.perf_counter() - start)
    return times


def compare(times: Mapping[str, Sequence[float]], ours: str) -> dict[str, Any]:
    """Summarise what `interleave` measured.

    Returns:
        dict: "rounds"; "time_us": name -> spread; "speedup": other name -> spread of other / ours, round by
        round (above 1: ours is faster).
    """
    mine = times[ours]
    return {
        "rounds": len(mine),
        "time_us": {name: spread([1e6 * t for t in values]) for name, values in times.items()},
        "speedup": {
            name: spread([other / own for other, own in zip(values, mine, strict=True)])
            for name, values in times.items()
            if name != ours
        },
    }


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
    """The checked-out commit, with "+changes" if the working tree differs; "unknown" outside a checkout."""
    here = Path(__file__).parent
    try:
        head = subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"], cwd=here, capture_output=True, text=True, check=True
        ).stdout.strip()
        changed = subprocess.run(
            ["git", "status", "--porcelain", "-uno"], cwd=here, capture_output=True, text=True, check=True
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return head + ("+changes" if changed else "")


def print_row(label: str, result: Mapping[str, Any]) -> None:
    """One line: the median time of each candidate, then each speed-up with its 20-80% range."""
    times = "  ".join(f"{name} {1e-3 * s['median']:9.3f} ms" for name, s in result["time_us"].items())
    ratios = "  ".join(
        f"x{name} {s['median']:6.2f} ({s['q20']:.2f}-{s['q80']:.2f})" for name, s in result["speedup"].items()
    )
    print(f"{label:38s} {times}   {ratios}", flush=True)


def arguments(description: str, *, seconds: float) -> argparse.ArgumentParser:
    """The options that every benchmark takes: --json, --seconds, --threads."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--json", type=Path, metavar="PATH", help="also write the record to PATH")
    parser.add_argument("--seconds", type=float, default=seconds, help="per row (default %(default)s)")
    parser.add_argument("--threads", type=int, help="threads for both sides (default: torch's own choice)")
    return parser


def _options(record: Path) -> list[str]:
    return [record.name if argument == str(record) else argument for argument in sys.argv[1:]]


def write_record(
    path: Path,
    benchmark: str,
    rows: Sequence[Mapping[str, Any]],
    facts: Mapping[str, Any] | None = None,
) -> None:
    """Write command, commit, machine and rows as JSON; the file appears whole or not at all.

    Args:
        path: of the record.
        benchmark: name of the module below `benchmarks`.
        rows: what was measured.
        facts: further facts about the machine.
    """
    record = {
        "benchmark": benchmark,
        # Without the machine's own paths: the module, and the options as given but for where the record goes.
        "command": ["python", "-m", f"benchmarks.{benchmark}", *_options(path)],
        "commit": commit(),
        "utc": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "machine": {**machine(), **(facts or {})},
        "rows": list(rows),
    }
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(record, indent=1) + "\n")
    part.replace(path)
