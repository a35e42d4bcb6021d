"""The recorded results as Markdown: `python -m benchmarks.table [RECORD.json ...]`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


def label(row: dict[str, Any]) -> str:
    """What a row measured: all its fields but the figures."""
    figures = {"rounds", "time_us", "speedup", "largest_difference"}
    return ", ".join(f"{k} {v}" for k, v in row.items() if k not in figures)


def table(record: dict[str, Any]) -> str:
    """One record as a table: median times, and the median ratio with its 20-80% range."""
    machine = record["machine"]
    lines = [
        f"### {record['benchmark']}",
        "",
        f"`{' '.join(record['command'])}`, {record['utc'][:10]}, commit {record['commit']}: "
        f"{machine['processor']}, {machine['threads']} threads, {machine['isa']}, torch {machine['torch']}",
        "",
        "| what | median time | faster than |",
        "|---|---|---|",
    ]
    for row in record["rows"]:
        times = ", ".join(f"{name} {1e-3 * t['median']:.3g} ms" for name, t in row["time_us"].items())
        ratios = ", ".join(
            f"{name} {r['median']:.2f}x ({r['q20']:.2f}-{r['q80']:.2f})" for name, r in row["speedup"].items()
        )
        lines.append(f"| {label(row)} | {times} | {ratios} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Print the tables of the records given, or of all that are committed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("records", nargs="*", type=Path, help="default: benchmarks/results/*-cpu.json")
    paths = parser.parse_args().records or sorted(RESULTS.glob("*-cpu.json"))
    print("\n".join(table(json.loads(path.read_text())) for path in paths))


if __name__ == "__main__":
    main()
