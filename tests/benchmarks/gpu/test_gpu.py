"""benchmarks/gpu/run.sh and its report, as far as they go without a GPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch

import dove_ext
from benchmarks.gpu import device, report
from benchmarks.gpu.attention import visible_pairs
from benchmarks.gpu.generator import generator_flops
from dove_ext import DoveConfig, StackConfig, VQGANConfig

ROOT = Path(__file__).parents[3]
SCRIPT = ROOT / "benchmarks" / "gpu" / "run.sh"


def run(tmp_path: Path, *arguments: str, gpu: str | None = None) -> subprocess.CompletedProcess[str]:
    """The script with a PATH on which nvidia-smi prints `gpu`, or is missing."""
    tools = tmp_path / "bin"
    tools.mkdir(exist_ok=True)
    for tool in ("dirname", "grep", "cat", "mkdir", "bash", "env"):
        if not (tools / tool).exists():
            (tools / tool).symlink_to(
                f"/usr/bin/{tool}" if Path(f"/usr/bin/{tool}").exists() else f"/bin/{tool}"
            )
    if gpu is not None:
        (tools / "nvidia-smi").write_text(f"#!/bin/bash\necho '{gpu}'\n")
        (tools / "nvidia-smi").chmod(0o755)
    return subprocess.run(
        ["/bin/bash", str(SCRIPT), *arguments],
        env={"PATH": str(tools), "PYTHON": sys.executable, "HOME": os.environ.get("HOME", "/")},
        capture_output=True, text=True, check=False,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--fast"], "unknown option --fast"),
        (["--seconds"], "--seconds needs a value"),
        (["--seconds", "long"], "--seconds must be a number, got long"),
        (["--only", "attention,sorting"], "there is no benchmark sorting; choose from attention, eos"),
        (["--only", "device"], "there is no benchmark device"),
    ],
)
def test_wrong_arguments(tmp_path: Path, arguments: list[str], text: str) -> None:
    result = run(tmp_path, *arguments)
    assert result.returncode == 2
    assert text in result.stderr
    assert not result.stdout


def test_help_names_every_option(tmp_path: Path) -> None:
    result = run(tmp_path, "--help")
    assert result.returncode == 0
    for option in ("--out", "--seconds", "--only", "--batches", "--lengths", "--quick", "--no-build"):
        assert option in result.stdout


def test_refuses_without_a_gpu(tmp_path: Path) -> None:
    out = tmp_path / "records"
    result = run(tmp_path, "--out", str(out))
    assert result.returncode == 2
    assert "no GPU here (nvidia-smi was not found)" in result.stderr
    assert not out.exists()
    result = run(tmp_path, "--out", str(out), gpu="No devices were found")
    assert result.returncode == 2
    assert "nvidia-smi lists no GPU" in result.stderr
    assert not out.exists()


@pytest.mark.skipif(dove_ext.info()["backends"]["cuda"]["available"], reason="there is a GPU")
def test_says_why_kernels_cannot_run(tmp_path: Path) -> None:
    result = run(tmp_path, "--no-build", "--out", str(tmp_path / "records"), gpu="GPU 0: a card")
    assert result.returncode != 0
    assert f"needs a GPU and CUDA kernels: {dove_ext.info()['backends']['cuda']['why']}" in result.stderr


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
    assert "compiled" not in text
    assert "1.25 of 10.0 us" in text
    assert text.count("Not measured.") == len(report.BENCHMARKS) - 1
    assert capsys.readouterr().out == text + "\n"


def test_report_refuses_a_missing_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        report.main([str(tmp_path / "nowhere")])
    assert "is not a folder; run benchmarks/gpu/run.sh first" in capsys.readouterr().err


# --- Dry runs ---------------------------------------------------------------------------------------------


@pytest.fixture
def dry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A benchmark's dry run with options: its record, read from the file."""
    stack = StackConfig(hidden=64, layers=2, heads=2, mlp=128)
    vqgan = VQGANConfig(channels=32, channel_multipliers=(1, 2), encoder_blocks=1, decoder_blocks=1,
                        latent_channels=32, codebook_size=0)  # fmt: skip
    config = DoveConfig(image_size=32, vqgan=vqgan, generator=stack, token_decoder=stack, vocab_size=300)
    monkeypatch.setattr("benchmarks.ops.eos.VOCABULARY", 2000)
    monkeypatch.setattr("benchmarks.gpu.generator.DoveConfig", lambda: config)
    monkeypatch.setattr(device, "name", device.name)

    def run(name: str, *options: str) -> dict[str, Any]:
        path = tmp_path / f"{name}.json"
        main = import_module(f"benchmarks.gpu.{name}").main
        assert main(["--dry-run", "--json", str(path), *options]) == 0
        found: dict[str, Any] = json.loads(path.read_text())
        assert found["benchmark"] == f"gpu.{name}" and "--dry-run" in found["command"]
        return found

    return run


@pytest.mark.parametrize("name", report.BENCHMARKS)
def test_every_benchmark_runs_dry(dry: Any, name: str) -> None:
    rows = dry(name)["rows"]
    assert rows
    for row in rows:
        assert "compiled" not in row.get("missing", {})
        if name in ("group_norm", "eos"):  # the baseline under torch.compile did run, and ran compiled
            assert row["compiled"] == 1 and "compiled" in row["speedup"]


def test_options_choose_rows(dry: Any) -> None:
    rows = dry("attention", "--lengths", "257,260", "--batches", "2")["rows"]
    assert {(row["batch"], row["positions"]) for row in rows} == {(2, 257), (2, 260)}


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
