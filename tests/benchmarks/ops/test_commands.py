"""Every command of benchmarks.ops runs, in its smallest form."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import replace
from functools import cache, partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.ops import eos, precision, resources, training
from dove_ext import DoveConfig, DoveModel, StackConfig, VQGANConfig, config, ops

ROOT = Path(__file__).parents[3]
COMMANDS = (
    ("attention", ()), ("eos", ()), ("group_norm", ()), ("group_norm", ("--backward",)), ("conv", ()),
    ("query", ()), ("training", ()),
)  # fmt: skip


@pytest.fixture(autouse=True)
def small_and_harmless(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(eos, "VOCABULARY", 2000)
    for name in ("conv", "query", "training"):  # it outlives the test
        monkeypatch.setattr(f"benchmarks.ops.{name}.keep_freed_memory", lambda: None)
    monkeypatch.setattr(training, "QUICK_SIZE", 32)
    # One process that measures memory instead of one a backend: to start another takes seconds.
    peak = cache(partial(training.peak_mib, backend="auto"))
    monkeypatch.setattr(training, "peak_mib", lambda *case: peak(*case[:-1]))


@pytest.mark.parametrize(("name", "options"), COMMANDS)
def test_command_measures_and_records(name: str, options: tuple[str, ...], tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    module = import_module(f"benchmarks.ops.{name}")
    given = [*options, "--quick", "--seconds", "0", "--json", str(path)]
    assert module.main(given) == 0
    record = json.loads(path.read_text())
    assert record["command"][:3] == ["python", "-m", f"benchmarks.ops.{name}"]
    assert record["command"][-1] == "record.json"
    assert record["rows"]
    for row in record["rows"]:
        assert all(ratio["median"] > 0 for ratio in row["speedup"].values())
        # On 32 x 32 pixels a step may need no more than what importing had taken and given back.
        assert name != "training" or set(row["peak_mib"]) == set(training.NAMES)


def test_make_bench_runs_what_is_tested_here() -> None:
    made = re.findall(r"python -m benchmarks\.ops\.(\w+)(.*)", (ROOT / "Makefile").read_text())
    assert [(name, tuple(options.split())) for name, options in made] == list(COMMANDS)


def test_rows_are_chosen_by_batch(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    assert eos.main(["--quick", "--batches", "2,3", "--seconds", "0", "--json", str(path)]) == 0
    shapes = [row["shapes"]["hidden"][0] for row in json.loads(path.read_text())["rows"]]
    assert shapes == [2, 2, 3, 3]


@pytest.mark.parametrize("images", [1, 24, 64])
def test_every_image_has_its_end(images: int) -> None:
    inputs = eos.clusters(images, torch.float32, witness=False)
    found = ops.eos_scan(**inputs)
    assert found.tolist() == eos.matmul_argmax(**inputs).tolist()
    assert found.tolist() == [100 + 7 * (image % 23) for image in range(images)]


def test_precision(capsys: pytest.CaptureFixture[str]) -> None:
    assert precision.main([str(ROOT / "examples" / "photos" / "cat.jpg"), "--quick"]) == 0
    out = capsys.readouterr().out
    assert out.count("| PyTorch ") == out.count("| dove_ext ") == 2


def test_precision_of_the_encoder(monkeypatch: pytest.MonkeyPatch) -> None:
    stack = StackConfig(hidden=64, layers=1, heads=2, mlp=128)
    vqgan = VQGANConfig(channels=32, channel_multipliers=(1, 2), encoder_blocks=1, decoder_blocks=1,
                        latent_channels=32, codebook_size=0)  # fmt: skip
    small = DoveConfig(image_size=32, vqgan=vqgan, generator=stack, token_decoder=stack, vocab_size=300)
    monkeypatch.setattr(precision, "DoveConfig", lambda: small)
    errors = {name: float(error) for name, error in precision.encoder(torch.rand(1, 3, 32, 32)).rows}
    assert 0 < errors["dove_ext float32"] < 1e-4 < errors["dove_ext bfloat16"] < 0.1


def test_precision_of_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    def from_pretrained(name: str) -> DoveModel:
        torch.manual_seed(0)
        model = DoveModel(replace(config.preset(name), image_size=64))
        for weight in model.parameters():
            if not weight.any():  # as if it were trained
                torch.nn.init.normal_(weight, std=0.02)
        return model

    monkeypatch.setattr(precision.DoveModel, "from_pretrained", from_pretrained)
    rows = precision.under_autocast(torch.rand(2, 3, 64, 64) * 2 - 1).rows
    assert [row[0] for row in rows] == ["token decoder, first map", "token decoder, stack", "VQGAN decoder"]
    for name, lowered, kept in rows:
        assert 0.9 < float(kept) <= 1, name
        assert -1 <= float(lowered) <= 1, name


def run_resources(*options: object) -> int:
    return resources.main([str(option) for option in options])


@pytest.mark.skipif(resources.nvcc() is None, reason="no nvcc")
def test_resources(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "resources.json"
    assert run_resources("pack.cu", "--architectures", "sm_80", "--json", path) == 0
    kernels: list[dict[str, Any]] = json.loads(path.read_text())["kernels"]
    assert kernels and all(k["source"] == "pack.cu" and k["registers"] > 0 for k in kernels)
    assert capsys.readouterr().out.count("registers") == len(kernels)


def test_resources_of_a_source_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run_resources("sort.cu")
    assert "csrc/cuda has no sort.cu; choose from " in capsys.readouterr().err


@pytest.mark.skipif(find_spec("pytest_benchmark") is None, reason="pytest-benchmark is not installed")
def test_single_ops_under_pytest_benchmark() -> None:
    command = [sys.executable, "-m", "pytest", "benchmarks/ops/test_ops.py", "--benchmark-disable"]
    done = subprocess.run(
        [*command, "-k", "pack or group_norm", "-p", "no:cacheprovider"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    assert "12 passed" in done.stdout
