"""What GPU benchmarks share, and the report; test_calls.py runs all of them."""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.gpu import device, models, report, sanitize
from benchmarks.gpu.attention import visible_pairs
from benchmarks.gpu.generator import generator_flops
from dove_ext import DoveConfig
from dove_ext.ops import library
from tests.cases import CASES


def record() -> dict[str, Any]:
    time = {"median": 12.5, "q20": 12.0, "q80": 13.0}
    row = {
        "what": "pack",
        "batch": 8,
        "rounds": 5,
        "time_us": {"ours": time, "index_select": time},
        "speedup": {"index_select": {"median": 1.0, "q20": 0.9, "q80": 1.1}},
        "floor_us": 10.0,
        "of_floor": 1.25,
        "captured": ["ours"],
        "compiled": 1,
        "missing": {"flash-attn": "ImportError: no module"},
    }
    machine = {
        "device": "a card", "driver": "1.2", "cuda": "13.0", "cudnn": 9, "torch": "2.11",
        "ceilings": {"bytes_per_s": 3e12, "bf16_flops_per_s": 7.9e14},
    }  # fmt: skip
    return {
        "command": ["python", "-m", "benchmarks.gpu.pack"],
        "commit": "abc",
        "utc": "2025-01-02T03:04:05Z",
        "machine": machine,
        "rows": [row],
    }


def test_report_names_what_was_not_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "pack.json").write_text(json.dumps(record()), encoding="utf-8")
    assert report.main([str(tmp_path)]) == 0
    text = (tmp_path / "report.md").read_text()
    assert "a card, driver 1.2, CUDA 13.0" in text
    assert "2025-01-02, commit abc" in text
    assert "| what pack, batch 8 | ours 12.5 us, index_select 12.5 us |" in text
    assert "index_select 1.00x (0.90-1.10), flash-attn not measured" in text
    assert "compiled 1" not in text, "how many graphs were compiled is no part of what was measured"
    assert "1.25 of 10.0 us" in text
    assert text.count("Not measured.") == len(report.BENCHMARKS) - 1
    assert capsys.readouterr().out == text + "\n"


def test_report_refuses_a_missing_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        report.main([str(tmp_path / "nowhere")])
    assert "is not a folder; run benchmarks/gpu/run.sh first" in capsys.readouterr().err


pytestmark = pytest.mark.usefixtures("one_thread")


# --- Dry runs ---------------------------------------------------------------------------------------------


@pytest.fixture
def dry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A benchmark's dry run with options: its record, read from the file."""
    monkeypatch.setattr(device, "name", device.name)

    def run(name: str, *options: str) -> dict[str, Any]:
        path = tmp_path / f"{name}.json"
        main = import_module(f"benchmarks.gpu.{name}").main
        assert main(["--dry-run", "--json", str(path), *options]) == 0
        found: dict[str, Any] = json.loads(path.read_text())
        assert found["benchmark"] == f"gpu.{name}" and "--dry-run" in found["command"]
        return found

    return run


def test_a_wrong_gradient_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "name", "cpu")
    small, found, calls = models.random_weights(device.config()), models.gradients, []

    def other_images(*arguments: Any, **options: Any) -> dict[str, torch.Tensor]:
        calls.append(options)
        gradients = found(*arguments, **options)
        return gradients if len(calls) == 1 else {name: -each for name, each in gradients.items()}

    monkeypatch.setattr(models, "gradients", other_images)
    said = models.Report()
    models.training(said, "small", small, 2)
    assert (said.lines, said.failed) == (2, 2)
    said.near("nothing but NaN", torch.full((3,), torch.nan), torch.ones(3), 1e9)
    assert said.failed == 3


def test_rows_for_the_sanitizer() -> None:
    known = {str(case): case for case in CASES}
    assert not sanitize.ROWS - known.keys()
    assert not set(sanitize.DRY_ROWS) - known.keys()
    forward = {
        name.removesuffix("_backward").removeprefix("add_group") for name in library.CUDA_IMPLEMENTATIONS
    }
    assert {known[row].op for row in sanitize.ROWS} >= forward - {"_norm"}, "kernels that it would never see"


def test_options_choose_rows(dry: Any) -> None:
    rows = dry("attention", "--lengths", "17,20", "--batches", "2")["rows"]
    assert {(row["batch"], row["positions"]) for row in rows} == {(2, 17), (2, 20)}


def test_a_compiled_baseline_never_falls_back_to_eager(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "name", "cpu")

    def double(x: torch.Tensor) -> torch.Tensor:
        return 2 * x

    def row(size: int) -> dict[str, Any]:
        x, function = torch.ones(size), device.compiled(double)
        calls = {"ours": lambda _: 2 * x, "compiled": lambda _: function(x)}
        return device.measure(calls, sets=1, seconds=0.0, bytes_moved=1, flops=0, kind="fp32")

    device.new_row()
    limit = torch._dynamo.config.recompile_limit
    crowded = [row(size) for size in range(2, limit + 4)]  # dynamo would say nothing and run eagerly
    assert "compiled" not in crowded[0]["missing"]
    assert "recompile" in crowded[-1]["missing"]["compiled"].lower()
    for size in range(2, limit + 4):
        device.new_row()
        found = row(size)
        assert (found["compiled"], found["missing"]) == (1, {})


def test_counted_work() -> None:
    assert visible_pairs(5, 0) == 15
    assert visible_pairs(5, 3) == 3 + 3 + 3 + 4 + 5
    # The paper's shape: 19.3 GFLOP for the stack at 512 positions, 13.2 for the head.
    head = generator_flops(DoveConfig(), 1, DoveConfig().vocab_size) - generator_flops(DoveConfig(), 1, 0)
    assert head == pytest.approx(13.2e9, rel=0.01)
    assert 16e9 < generator_flops(DoveConfig(), 1, 0) < 19.3e9 * 1.07
