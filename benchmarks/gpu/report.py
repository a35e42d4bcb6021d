"""The records of a GPU run as one Markdown file: `python -m benchmarks.gpu.report FOLDER [--output FILE]`.

A benchmark without a record in the folder, NAME.json or quick-NAME.json, is listed as not measured.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from dove_ext.atomic import atomic_write

from ..table import section

BENCHMARKS = (
    "encode", "encode-compiled", "generator", "eos", "attention", "group_norm", "training", "pack",
)  # fmt: skip


def report(folder: Path) -> str:
    """All benchmarks, each with its table or the words "not measured"."""
    parts = ["# Measured on a GPU\n"]
    for name in BENCHMARKS:
        paths = [path for path in (folder / f"{name}.json", folder / f"quick-{name}.json") if path.exists()]
        body = section(json.loads(paths[0].read_text())) if paths else "Not measured.\n"
        parts.append(f"## {name}\n\n{body}")
    return "\n".join(parts)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, help="where the records are")
    parser.add_argument("--output", type=Path, metavar="FILE", help="default: report.md in the folder")
    options = parser.parse_args(arguments)
    folder = options.folder
    if not folder.is_dir():
        parser.error(f"{folder} is not a folder; run benchmarks/gpu/run.sh first")
    text = report(folder)
    with atomic_write(options.output or folder / "report.md") as temporary:
        temporary.write_text(text, encoding="utf-8")
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
