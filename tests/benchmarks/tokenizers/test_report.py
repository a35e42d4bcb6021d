"""Bars, tables and plots from a record."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from benchmarks.tokenizers import bars, measure, report, systems
from dove_ext.errors import DoveError
from tests.benchmarks.tokenizers.made_up import record

# --- Bars -------------------------------------------------------------------------------------------------


def test_bars_compare_round_by_round() -> None:
    found = {r["bar"]: r for r in bars.evaluate(record())}
    released = found["encode, 128 tokens: times faster than VQGAN-256 as released"]
    assert released["figure"]["median"] == pytest.approx(5.0)
    assert released["met"] is True
    assert found["encode, 256 tokens: times faster than VQGAN-256 as released"]["met"] is False  # 2.75
    best = found["encode, 128 tokens: time over VQGAN-256 at its best"]
    assert best["figure"]["median"] == pytest.approx(2.2 / 2.1)  # the faster of eager and compiled
    assert best["met"] is True
    assert found["encode, 128 tokens: times faster than ALIT-128 at its best"]["met"] is True
    assert found["encode, 256 tokens: times faster than ALIT as released"]["figure"]["median"] == 25
    assert found["generator + EOS, stop at 256: times faster than eager PyTorch"]["met"] is False  # 2.25
    assert found["generator + EOS, stop at 128: times faster than eager PyTorch"]["met"] is True
    assert found["encode, batch 64: peak memory over eager PyTorch's"]["figure"]["median"] == 0.3


def test_bars_that_were_not_measured_are_neither_met_nor_missed() -> None:
    bare = {**record(), "rows": [], "memory": []}
    assert all(r["met"] is None and r["figure"] is None for r in bars.evaluate(bare))


def test_every_bar_reads_systems_that_exist() -> None:
    names = {(s.name, s.way) for s in systems.SYSTEMS}
    assert len(names) == len(systems.SYSTEMS)
    plan = {(s.name, s.way): s for g in systems.plan(quick=False) for s, _ in g.cases}
    assert names <= set(plan)
    full = copy.deepcopy(record())
    full["rows"] = [
        {"group": g.name, **measure.describe(s, stage, batch), "seconds": [1.0]}
        for g in systems.plan(quick=False) for s, batch in g.cases for stage in g.stages
    ]  # fmt: skip
    full["memory"] = [
        {**measure.describe(s, "encode", b), "peak_mib": 1.0} for s, b in systems.memory_cases(quick=False)
    ]
    assert all(r["met"] is not None for r in bars.evaluate(full))


# --- Tables and plots -------------------------------------------------------------------------------------


def test_markdown_shows_figures_gaps_and_promises() -> None:
    text = report.markdown(record())
    assert "a CPU, 2 threads" in text
    assert "| VQGAN-256 | eager fp32, as released | 2000 | 1.1e+04 | 0.727 | 1.00 | 140 |  |" in text
    assert ">= 2.5 | 2.25 | **not met**" in text
    assert "- TiTok S-128 (eager bf16), encode: ModuleNotFoundError: no peer" in text
    # Encode and prefill together: (2 + 2) / (2.5 + 1), and the paper's 1.14.
    assert "| dove-base-128 | dove_ext fp32 | 1.14 |  | 1.14 |" in text
    assert "120-130, mean 125" in text
    assert "| dove-base-own | dove_ext fp32 | 1 | 122 | 4000 | 1.50 | 7.0 |" in text


def test_report_writes_csv_and_plots(bench: Any, tmp_path: Path) -> None:
    (tmp_path / "bench.json").write_text(json.dumps(record()))
    code, out, err = bench("--report", "-o", tmp_path)
    assert code == 0
    assert "## Bars" in out
    lines = (tmp_path / "bench.csv").read_text().splitlines()
    assert lines[0].startswith("group,system,way,stage,batch,size,tokens,rounds,median_ms,q20_ms,q80_ms")
    assert len(lines) == 1 + len(record()["rows"])
    drawn = sorted(path.name for path in tmp_path.glob("*.svg"))
    assert drawn == ["bench-batch.svg", "bench-generator.svg", "bench-size.svg", "bench-tokens.svg"]
    for name in drawn:
        assert ElementTree.parse(tmp_path / name).getroot().tag.endswith("svg")
        assert f"({name})" in (tmp_path / "bench.md").read_text()
        assert name in err


@pytest.mark.parametrize(
    ("damage", "text"),
    [
        (lambda r: r.update(benchmark="eos"), "does not name the benchmark 'bench'"),
        (lambda r: r.pop("memory"), "'memory' is missing or no list"),
        (lambda r: r["rows"][0].pop("way"), "row 0 has no 'way'"),
        (lambda r: r["rows"][2].pop("seconds"), "row 2 (VQGAN-256) has no times"),
        (lambda r: r["rows"][1].update(seconds=[1.0, None]), "row 1 (VQGAN-256) has no times"),
        (lambda r: r["rows"][1].update(seconds=[]), "row 1 (VQGAN-256) has no times"),
        (lambda r: r["rows"].insert(0, 3), "row 0 has no 'group'"),
    ],
)  # fmt: skip
def test_broken_records_are_refused_in_one_sentence(
    bench: Any, tmp_path: Path, damage: Any, text: str
) -> None:
    broken = record()
    damage(broken)
    (tmp_path / "bench.json").write_text(json.dumps(broken))
    code, out, err = bench("--report", tmp_path / "bench.json", "-o", tmp_path / "out")
    assert (code, out) == (1, "")
    assert text in err
    assert "measure anew with `dove bench --full`" in err
    assert len(err.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_record_must_exist(tmp_path: Path) -> None:
    with pytest.raises(DoveError, match=r"cannot read .*none\.json"):
        report.read_record(tmp_path / "none.json")
