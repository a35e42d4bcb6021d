"""Records and their tables."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import record, table, timing


def result(**more: Any) -> dict[str, Any]:
    return {**timing.compare({"ours": [1.0, 1.0], "torch": [2.0, 4.0]}, "ours"), **more}


def test_a_record_is_whole_after_each_row(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "eos.json"
    rows = record.Record("ops.eos", path, ["--quick", "--json", str(path)], {"device": "a card"})
    assert not path.exists()
    for number in (1, 2):
        rows.add(f"row {number}", {"batch": number}, result(missing={"flex": "ImportError: none"}))
        found = json.loads(path.read_text())
        assert [row["batch"] for row in found["rows"]] == list(range(1, number + 1))
    assert found["command"] == ["python", "-m", "benchmarks.ops.eos", "--quick", "--json", "eos.json"]
    assert found["machine"]["device"] == "a card" and found["machine"]["torch"]
    assert list(tmp_path.iterdir()) == [path]
    assert capsys.readouterr().out.count("flex: ImportError: none") == 2


def test_without_a_path_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    record.Record("ops.eos", None, []).add("row", {"batch": 1}, result())
    assert not list(tmp_path.iterdir())


def test_options_that_choose_rows() -> None:
    parser = record.arguments("what", seconds=3.0)
    assert parser.parse_args(["--batches", "1,64"]).batches == (1, 64)
    for text in ("", "0", "1,,8", "1,eight", "-1"):
        with pytest.raises(argparse.ArgumentTypeError, match="is not whole numbers of at least 1"):
            record.numbers(text)


def test_tables_of_all_committed_records(capsys: pytest.CaptureFixture[str]) -> None:
    assert table.main([]) == 0
    out = capsys.readouterr().out
    found = [json.loads(path.read_text())["rows"] for path in record.RESULTS.glob("*-cpu.json")]
    timed = [rows for rows in found if "time_us" in rows[0]]
    assert len(timed) > 3
    assert len(timed) == out.count("### ") == out.count("| what | median time | faster than |")
    assert sum(line.startswith("| ") for line in out.splitlines()) == sum(map(len, timed)) + 2 * len(timed)


def test_table_of_a_file_that_is_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "broken.json").write_text("{")
    for name in ("broken.json", "none.json"):
        with pytest.raises(SystemExit):
            table.main([str(tmp_path / name)])
        assert "name JSON records that a benchmark wrote with --json" in capsys.readouterr().err


def test_cells() -> None:
    text = table.Table(["a", "b"], [["x|y", "1"]]).markdown()
    assert text == "| a | b |\n| --- | --- |\n| x\\|y | 1 |"
    assert table.with_range({"median": 2.1, "q20": 2.0, "q80": 2.25}, "x") == "2.10x (2.00-2.25)"
    assert table.with_range({"median": 2.1, "q20": 2.1, "q80": 2.1}) == "2.10"
