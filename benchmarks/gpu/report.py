"""The records of a GPU run as one Markdown file: `python -m benchmarks.gpu.report FOLDER`.

A benchmark without a record in the folder is listed as not measured.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from ..table import section

BENCHMARKS = ("attention", "eos", "pack", "group_norm", "generator")


def report(folder: Path) -> str:
    """All benchmarks, each with its table or the words "not measured"."""
    parts = ["# Measured on a GPU\n"]
    for name in BENCHMARKS:
        path = folder / f"{name}.json"
        body = section(json.loads(path.read_text())) if path.exists() else "Not measured.\n"
        parts.append(f"## {name}\n\n{body}")
    return "\n".join(parts)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, help="where the records are; report.md is written there")
    folder = parser.parse_args(arguments).folder
    if not folder.is_dir():
        parser.error(f"{folder} is not a folder; run benchmarks/gpu/run.sh first")
    text = report(folder)
    (folder / "report.md").write_text(text)
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
