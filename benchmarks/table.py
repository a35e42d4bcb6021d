"""Tables in Markdown, and `python -m benchmarks.table [RECORD.json ...]`, which prints those of records."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .record import RESULTS

FIGURES = {
    "rounds", "time_us", "speedup", "largest_difference", "floor_us", "of_floor", "captured", "compiled",
    "missing", "images_per_s", "peak_mib",
}  # fmt: skip
"""Fields of a row that are not part of what it measured."""


@dataclass(frozen=True)
class Table:
    """Cells are text."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]

    def markdown(self) -> str:
        """Without a newline at the end."""
        lines = [self.columns, ["---"] * len(self.columns), *self.rows]
        return "\n".join("| " + " | ".join(c.replace("|", "\\|") for c in line) + " |" for line in lines)


def with_range(figure: Mapping[str, float], unit: str = "") -> str:
    """A median with its 20% and 80% quantiles: "2.10x (2.05-2.20)"."""
    text, low, high = (f"{figure[key]:.2f}" for key in ("median", "q20", "q80"))
    return f"{text}{unit}" if text == low == high else f"{text}{unit} ({low}-{high})"


def of_record(record: Mapping[str, Any]) -> Table:
    """Median times, ratios with their range and, where it is known, our time over the floor."""
    with_floor = any("floor_us" in row for row in record["rows"])
    rows = []
    for row in record["rows"]:
        medians = {name: time["median"] for name, time in row["time_us"].items()}
        times = ", ".join(
            f"{name} {us:.1f} us" if with_floor else f"{name} {1e-3 * us:.3g} ms"
            for name, us in medians.items()
        )
        ratios = [f"{name} {with_range(r, 'x')}" for name, r in row["speedup"].items()]
        ratios += [f"{name} not measured" for name in row.get("missing", {})]
        what = ", ".join(f"{key} {value}" for key, value in row.items() if key not in FIGURES)
        floor = f"{row['of_floor']:.2f} of {row['floor_us']:.1f} us" if row.get("of_floor") else ""
        rows.append([what, times, ", ".join(ratios), *([floor] if with_floor else [])])
    return Table(["what", "median time", "faster than", *(["times the floor"] if with_floor else [])], rows)


def origin(record: Mapping[str, Any]) -> str:
    """Command, day, commit and machine."""
    machine = record["machine"]
    if "ceilings" in machine:
        limits = machine["ceilings"]
        where = (
            f"{machine['device']}, driver {machine['driver']}, CUDA {machine['cuda']}, cuDNN "
            f"{machine['cudnn']}, torch {machine['torch']}; ceilings "
            f"{limits['bytes_per_s'] / 1e12:.2f} TB/s, "
            f"{limits['bf16_flops_per_s'] / 1e12:.0f} TFLOP/s in bf16"
        )
    else:
        threads, isa = machine["threads"], machine["isa"]
        where = f"{machine['processor']}, {threads} threads, {isa}, torch {machine['torch']}"
    return f"`{' '.join(record['command'])}`, {record['utc'][:10]}, commit {record['commit']}: {where}"


def section(record: Mapping[str, Any]) -> str:
    """Where the record comes from, and its table."""
    return f"{origin(record)}\n\n{of_record(record).markdown()}\n"


def main(arguments: list[str] | None = None) -> int:
    """Print the tables of the records given, or of all that are committed."""
    parser = argparse.ArgumentParser(description="Print records as tables in Markdown.")
    parser.add_argument(
        "records", nargs="*", type=Path, metavar="RECORD", help="default: benchmarks/results/*-cpu.json"
    )
    given = parser.parse_args(arguments).records
    paths = given or sorted(RESULTS.glob("*-cpu.json"))
    try:
        records = [(path, json.loads(path.read_text(encoding="utf-8"))) for path in paths]
    except (OSError, ValueError) as error:
        parser.error(f"{error}; name JSON records that a benchmark wrote with --json")
    if not given:  # soak and train_kills time nothing
        records = [(path, record) for path, record in records if "time_us" in record["rows"][0]]
    for path, record in records:
        try:
            print(f"### {record['benchmark']}\n\n{section(record)}")
        except (KeyError, TypeError):
            parser.error(
                f"{path} is no record of benchmarks.ops; `dove bench --report` shows those of dove bench"
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
