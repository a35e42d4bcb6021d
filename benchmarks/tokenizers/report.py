"""Tables, CSV and plots from a record of `dove bench`."""

from __future__ import annotations

import csv
import io
import json
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from dove_ext.atomic import atomic_write, make_writable_folder
from dove_ext.errors import DoveError

from ..table import Table, with_range
from ..timing import spread
from . import plots
from .bars import DEFAULT, Figures, Spread, evaluate
from .build import EAGER, FIRST_WORD, RELEASED

Row = dict[str, Any]
FIELDS = {"group": str, "system": str, "way": str, "stage": str, "batch": int, "size": int}
PAPER = {"VQGAN-256": 1.0,
         "ALIT-256": 0.63, "ALIT-128": 0.82, "ALIT-64": 0.88, "ALIT-32": 0.92, "dove-base-256": 0.96,
         "dove-base-128": 1.14, "dove-base-64": 1.19, "dove-base-32": 1.26}  # fmt: skip
"""Speed relative to VQGAN-256 in the paper's Table 4."""


def read_record(path: Path) -> dict[str, Any]:
    """A bench.json, checked.

    Raises:
        DoveError: if there is none, or it is not a record of `dove bench`.
    """
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DoveError(
            f"cannot read {str(path)!r} ({error.strerror}); `dove bench --full` writes it"
        ) from error
    except ValueError as error:
        raise DoveError(
            f"{str(path)!r} is not JSON ({error}); measure anew with `dove bench --full`"
        ) from error
    wrong = _what_is_wrong(record)
    if wrong:
        raise DoveError(
            f"{str(path)!r} is not a record of `dove bench`: {wrong}; measure anew with `dove bench --full`"
        )
    return record  # type: ignore[no-any-return]


def _what_is_wrong(record: Any) -> str:
    if not isinstance(record, dict) or record.get("benchmark") != "bench":
        return "it does not name the benchmark 'bench'"
    for key, kind in {"rows": list, "memory": list, "gflop": list, "machine": dict, "command": list}.items():
        if not isinstance(record.get(key), kind):
            return f"{key!r} is missing or no {kind.__name__}"
    for i, row in enumerate(record["rows"]):
        for key, kind in FIELDS.items():
            if not isinstance(row, dict) or not isinstance(row.get(key), kind):
                return f"row {i} has no {key!r}"
        seconds = row.get("seconds", [1.0] if "missing" in row else None)
        if not isinstance(seconds, list) or not seconds or not all(_is_time(s) for s in seconds):
            return f"row {i} ({row['system']}) has no times"
        if row["stage"] == FIRST_WORD and "seconds" in row and not {"lengths", "cache_mib"} <= set(row):
            return f"row {i} ({row['system']}, {FIRST_WORD}) has no lengths and no memory"
    return ""


def _is_time(value: Any) -> bool:
    return isinstance(value, (int, float)) and value > 0


def gflop(record: Row, system: str, stage: str, **more: Any) -> float | None:
    """GFLOPs an image, if they were counted."""
    wanted = {"system": system, "stage": stage, **more}
    return next((r["gflop"] for r in record["gflop"] if all(r.get(k) == v for k, v in wanted.items())), None)


def flat(record: Row) -> list[Row]:
    """One line a measurement, as in bench.csv."""
    figures, lines = Figures(record), []
    for row in record["rows"]:
        line: Row = {key: row[key] for key in FIELDS} | {"tokens": row.get("tokens")}
        if "seconds" in row:
            ms = spread([1e3 * s for s in row["seconds"]])
            line |= {"rounds": len(row["seconds"])} | {f"{key}_ms": round(v, 4) for key, v in ms.items()}
            line["images_per_s"] = round(1e3 * row["batch"] / ms["median"], 3)
            against = figures.find("VQGAN-256", RELEASED, row["stage"], row["batch"], group=row["group"])
            speed = figures.ratio(against, row)
            line["speed_vs_vqgan"] = None if speed is None else round(speed["median"], 3)
        line["gflop"] = gflop(record, row["system"], row["stage"])
        line["peak_mib"] = figures.peak(row["system"], row["way"], row["batch"])
        line["lengths"] = " ".join(map(str, row.get("lengths", [])))
        line["missing"] = row.get("missing", "")
        lines.append(line)
    return lines


def _range(figure: Spread | None) -> str:
    return "not measured" if figure is None else with_range(figure)


def _milliseconds(row: Row | None) -> str:
    if row is None:
        return ""
    return f"{1e3 * statistics.median(row['seconds']):.4g}"


def bars_table(record: Row) -> Table:
    """Promises and figures."""
    words = {True: "met", False: "**not met**", None: "not measured"}
    return Table(
        ["bar", "limit", "figure (20-80%)", ""],
        [
            [r["bar"], f"{'>=' if r['at_least'] else '<='} {r['limit']:g}", _range(r["figure"]),
             words[r["met"]]]
            for r in evaluate(record)
        ],
    )  # fmt: skip


def stage_table(record: Row, stage: str) -> Table:
    """Encode or decode of every system, by batch size."""
    figures = Figures(record)
    rows = [r for r in record["rows"] if r["stage"] == stage and r["size"] == 256 and r["group"] != DEFAULT]
    batches = sorted({r["batch"] for r in rows})
    cells: list[list[str]] = []
    for name, way in dict.fromkeys((r["system"], r["way"]) for r in rows):
        of = [r for r in rows if (r["system"], r["way"]) == (name, way)]
        found = {b: next((r for r in of if r["batch"] == b and "seconds" in r), None) for b in batches}
        best = {b: r for b, r in found.items() if r is not None}
        if not best:
            continue
        images = max(b / statistics.median(r["seconds"]) for b, r in best.items())
        top = 8 if 8 in best else max(best)
        reference = figures.find("VQGAN-256", RELEASED, stage, top, group=best[top]["group"])
        memory = figures.peak(name, way, 8) if stage == "encode" else None
        work = gflop(record, name, stage)
        cells.append(
            [name, way, *(_milliseconds(found[b]) for b in batches), f"{images:.3g}",
             _range(figures.ratio(reference, best[top])), "" if work is None else f"{work:.0f}",
             "" if memory is None else f"{memory:.0f}"]
        )  # fmt: skip
    heads = [f"ms, batch {b}" for b in batches]
    return Table(["system", "way", *heads, "images/s", "speed vs VQGAN-256", "GFLOP", "peak MiB"], cells)


def parts_table(record: Row) -> Table:
    """Stage by stage."""
    rows = [r for r in record["rows"] if r["group"] == "parts, batch 8" and "seconds" in r]
    return Table(
        ["system", "way", "stage", "ms, batch 8", "GFLOP an image", "GFLOP/s"],
        [
            [r["system"], r["way"], r["stage"], _milliseconds(r), *_work(record, r)]
            for r in rows
        ],
    )  # fmt: skip


def _work(record: Row, row: Row) -> tuple[str, str]:
    work = gflop(record, row["system"], row["stage"])
    if work is None:
        return "", ""
    return f"{work:.1f}", f"{work * row['batch'] / statistics.median(row['seconds']):.0f}"


def with_prefill(record: Row) -> list[Row]:
    """Encode and the language model's prefill together, batch 1: speed relative to VQGAN-256, and TFLOP."""
    figures = Figures(record)
    prefill = {r["tokens"]: r for r in figures.rows if r["stage"] == "prefill"}
    encodes = [r for r in figures.rows if r["group"] == "encode, batch 1" and r["stage"] == "encode"]

    def both(row: Row) -> list[float] | None:
        tokens = row["tokens"] or (row.get("lengths") or [None])[0]
        after = prefill.get(tokens)
        return after and [a + b for a, b in zip(row["seconds"], after["seconds"], strict=False)]

    results = []
    for way in (RELEASED, EAGER):  # like against like: float32 here, bfloat16 there
        reference = figures.find("VQGAN-256", way, batch=1, group="encode, batch 1")
        slow = reference and both(reference)
        for row in encodes if slow else []:
            total = both(row)
            if total is None or ("fp32" in row["way"]) != ("fp32" in way):
                continue
            work = [gflop(record, row["system"], "encode"), _prefill_gflop(record, row, prefill)]
            results.append(
                {
                    **{key: row[key] for key in ("system", "way", "tokens")},
                    "speed": spread([a / b for a, b in zip(slow, total, strict=False)]),
                    "tflop": None if None in work else sum(work) / 1e3,
                    "paper": PAPER.get(row["system"]),
                }
            )
    return results


def _prefill_gflop(record: Row, row: Row, prefill: dict[int, Row]) -> float | None:
    tokens = row["tokens"] or row["lengths"][0]
    return gflop(record, "Llama", "prefill", way=prefill[tokens]["way"], tokens=tokens)


def prefill_table(record: Row) -> Table:
    """`with_prefill` beside the paper's Table 4."""
    return Table(
        ["system", "way", "speed vs VQGAN-256 in the same dtype", "TFLOP", "the paper's speed"],
        [
            [r["system"], r["way"], _range(r["speed"]),
             "" if r["tflop"] is None else f"{r['tflop']:.2f}", "" if r["paper"] is None else f"{r['paper']}"]
            for r in with_prefill(record)
        ],
    )  # fmt: skip


def first_word_table(record: Row) -> Table:
    """From pictures' files to the language model's first word, encoder included."""
    figures = Figures(record)
    rows = []
    for row in figures.rows:
        if row["stage"] != FIRST_WORD:
            continue
        way = RELEASED if "fp32" in row["way"] else EAGER  # like against like
        reference = figures.find("VQGAN-256", way, FIRST_WORD, row["batch"], group=row["group"])
        tokens = statistics.mean(row["lengths"])
        rows.append(
            [row["system"], row["way"], f"{row['batch']}", f"{tokens:.0f}", _milliseconds(row),
             _range(figures.ratio(reference, row)), f"{row['cache_mib'] / row['batch']:.1f}"]
        )  # fmt: skip
    return Table(
        ["system", "way", "batch", "tokens an image", "ms", "speed vs VQGAN-256 in the same dtype",
         "keys and values, MiB an image"],
        rows,
    )  # fmt: skip


def growth_table(record: Row) -> Table:
    """How cost grows: with tokens kept (generator), with K (image size), and without the settings."""
    rows = [
        r for r in record["rows"] if r["group"] in ("generator", "image size", DEFAULT) and "seconds" in r
    ]
    return Table(
        ["what", "system", "way", "tokens", "pixels", "K", "stage", "ms, batch 8"],
        [
            [r["group"], r["system"], r["way"], _tokens(r), f"{r['size']}", f"{(r['size'] // 16) ** 2}",
             r["stage"], _milliseconds(r)]
            for r in rows
        ],
    )  # fmt: skip


def _tokens(row: Row) -> str:
    lengths = row.get("lengths")
    if lengths and len(set(lengths)) > 1:
        return f"{min(lengths)}-{max(lengths)}, mean {statistics.mean(lengths):.0f}"
    return str(lengths[0] if lengths else row["tokens"] or 256)


def _sections(record: Row) -> Iterator[tuple[str, Table]]:
    yield "Bars", bars_table(record)
    yield "Encode", stage_table(record, "encode")
    yield "Decode", stage_table(record, "decode")
    yield "Stage by stage", parts_table(record)
    yield "Inside a language model", prefill_table(record)
    yield "From a picture's file to the first word", first_word_table(record)
    yield "How cost grows", growth_table(record)


def markdown(record: Row) -> str:
    """Everything as Markdown."""
    machine = record["machine"]
    where = machine.get("gpu") or f"{machine.get('processor')}, {machine.get('threads')} threads"
    lines = [
        "# Measured",
        f"`{' '.join(record['command'])}`, {record.get('utc', '')[:10]}, commit {record.get('commit')}, "
        f"{record.get('wall_s')} s: {where}, {machine.get('isa')}, torch {machine.get('torch')}, Python "
        f"{machine.get('python')}. Environment of all: "
        f"{', '.join(f'{k} {v}' for k, v in record.get('environment', {}).items()) or 'as it is'}. "
        "Medians; ratios are of neighbouring calls, with their 20% and 80% quantiles.",
    ]
    for title, table in _sections(record):
        if table.rows:
            lines += [f"## {title}", table.markdown()]
    missing = [r for r in (*record["rows"], *record["memory"]) if "missing" in r]
    if missing:
        texts = dict.fromkeys(f"- {r['system']} ({r['way']}), {r['stage']}: {r['missing']}" for r in missing)
        lines += ["## Not measured", "\n".join(texts)]
    return "\n\n".join(lines) + "\n"


def comma_separated(record: Row) -> str:
    """bench.csv."""
    lines = flat(record)
    names = list(dict.fromkeys(key for line in lines for key in line))
    stream = io.StringIO()
    writer = csv.DictWriter(stream, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return stream.getvalue()


def write(record: Row, folder: Path, *, with_record: bool) -> Sequence[Path]:
    """bench.md, bench.csv, the plots and, `with_record`, bench.json; each appears whole or not at all."""
    make_writable_folder(folder)
    texts = {"bench.json": json.dumps(record, indent=1) + "\n"} if with_record else {}
    drawings = plots.draw(record)
    shown = "".join(f"\n![{name}]({file})\n" for file, (name, _) in drawings.items())
    texts |= {"bench.md": markdown(record) + shown, "bench.csv": comma_separated(record)}
    texts |= {file: svg for file, (_, svg) in drawings.items()}
    for name, text in texts.items():
        with atomic_write(folder / name) as temporary:
            temporary.write_text(text, encoding="utf-8")
    return [folder / name for name in texts]
