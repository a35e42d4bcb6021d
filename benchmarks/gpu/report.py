"""The records of a GPU run as one Markdown file: `python -m benchmarks.gpu.report FOLDER`.

A benchmark without a record in the folder is listed as not measured.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

BENCHMARKS = ("attention", "eos", "pack", "group_norm", "generator")
_FIGURES = {"rounds", "time_us", "speedup", "floor_us", "of_floor", "captured", "missing"}


def _setting(row: dict[str, Any]) -> str:
    return ", ".join(f"{k} {v}" for k, v in row.items() if k not in _FIGURES)


def table(record: dict[str, Any]) -> str:
    """One record: median times, ratios with their 20-80% range, and our time over the floor."""
    machine = record["machine"]
    limits = machine["ceilings"]
    lines = [
        f"`{' '.join(record['command'])}`, {record['utc'][:10]}, commit {record['commit']}: "
        f"{machine['device']}, driver {machine['driver']}, CUDA {machine['cuda']}, cuDNN {machine['cudnn']}, "
        f"torch {machine['torch']}; ceilings {limits['bytes_per_s'] / 1e12:.2f} TB/s, "
        f"{limits['bf16_flops_per_s'] / 1e12:.0f} TFLOP/s in bf16",
        "",
        "| what | median time | faster than | times the floor |",
        "|---|---|---|---|",
    ]
    for row in record["rows"]:
        times = ", ".join(f"{name} {t['median']:.1f} us" for name, t in row["time_us"].items())
        ratios = [
            f"{name} {r['median']:.2f}x ({r['q20']:.2f}-{r['q80']:.2f})" for name, r in row["speedup"].items()
        ]
        ratios += [f"{name} not measured" for name in row.get("missing", {})]
        floor = "" if row.get("of_floor") is None else f"{row['of_floor']:.2f} of {row['floor_us']:.1f} us"
        lines.append(f"| {_setting(row)} | {times} | {', '.join(ratios)} | {floor} |")
    return "\n".join(lines) + "\n"


def report(folder: Path) -> str:
    """All benchmarks, each with its table or the words "not measured"."""
    parts = ["# Measured on a GPU\n"]
    for name in BENCHMARKS:
        path = folder / f"{name}.json"
        body = table(json.loads(path.read_text())) if path.exists() else "Not measured.\n"
        parts.append(f"## {name}\n\n{body}")
    return "\n".join(parts)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, help="where the records are; report.md is written there")
    folder = parser.parse_args(arguments).folder
    if not folder.is_dir():
        parser.error(f"{folder} is not a folder; run benchmarks/gpu.sh first")
    text = report(folder)
    (folder / "report.md").write_text(text)
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
