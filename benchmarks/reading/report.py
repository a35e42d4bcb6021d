"""Results of `benchmarks.reading` as a table."""

from __future__ import annotations

import json
import statistics
from collections import defaultdict
from pathlib import Path
from typing import Any

from ..table import Table


def table(folder: Path) -> str:
    """A row a system and number of tokens; means over seeds with their standard deviation."""
    found: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for path in sorted(folder.glob("*.json")):
        result = json.loads(path.read_text(encoding="utf-8"))
        found[result["system"], str(result["count"])].append(result)
    kinds = sorted({kind for results in found.values() for result in results for kind in result["kinds"]})
    shown = kinds if len(kinds) > 1 else []
    rows = []
    for (system, count), results in sorted(found.items(), key=lambda item: (item[0][0], _order(item[0][1]))):
        tokens = statistics.mean(result["tokens"] for result in results)
        cells = [system, "-" if not tokens else count, "-" if not tokens else f"{tokens:.1f}"]
        cells.append(_figure([result["accuracy"] for result in results]))
        cells += [_figure([result["kinds"][kind] for result in results]) for kind in shown]
        rows.append([*cells, str(len(results))])
    columns = ["tokens of", "asked for", "tokens a picture", "right, %", *shown, "seeds"]
    return Table(columns, rows).markdown() + "\n"


def _figure(values: list[float]) -> str:
    if len(values) == 1:
        return f"{values[0]:.1f}"
    return f"{statistics.mean(values):.1f} ± {statistics.stdev(values):.1f}"


def _order(count: str) -> int:
    return int(count) if count.isdecimal() else 1 << 30
