"""Two processes are one run, also where one of them has no image in its batch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import AutoModelForImageTextToText

from tests.instruct.small import ROWS, log, recipe, run, write_files
from tests.train.test_distributed import free_ports

# All runs by the same processes, forks behind the imports in place of what torchrun would start: to start one
# takes as long as its runs. tests/train/test_distributed.py has torchrun itself.
_MAIN = """\
import gc, os, signal, sys
gc.disable()  # of what is imported nothing goes
import torch
torch.set_num_threads(1)
from argparse import ArgumentParser
from dove_instruct.cli import configure, run
import dove_instruct.run, torch.distributed.fsdp, transformers.models.llama.modeling_llama
gc.freeze()  # nor need the forks look at it
gc.enable()
started = []
for rank in ("0", "1"):
    if child := os.fork():
        started.append(child)
        continue
    os.environ |= {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    os.environ["MASTER_ADDR"] = "127.0.0.1"
    break
else:
    ended, status = os.wait()
    (other,) = set(started) - {ended}
    if status:  # it would wait for ever
        os.kill(other, signal.SIGKILL)
    raise SystemExit(bool(status or os.waitpid(other, 0)[1]))
for argument in sys.argv[1:]:
    os.environ["MASTER_PORT"], folder = argument.split("=", 1)
    parser = ArgumentParser()
    configure(parser)
    run(parser.parse_args(["train", f"{folder}/recipe.yaml", "-o", f"{folder}/run"]))
"""
# Of two rows a step one process gets those with images, the other those without, in an order found by trying.
_ONE_SIDED: dict[str, Any] = {"global_batch": 2, "batch_size": 1, "steps": 3}
RUNS: dict[str, dict[str, Any]] = {
    "ddp": {"parallel": "ddp", "steps": 3},
    "fsdp2": {"parallel": "fsdp2", "steps": 3, "checkpoint_every": 2},
    "no image, fsdp2": {"parallel": "fsdp2", **_ONE_SIDED},
    "no image, encoder": {"parallel": "ddp", "train_encoder": True, **_ONE_SIDED},
}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_files(tmp_path_factory.mktemp("tune"))


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two rows, one of them without an image: each step has both, in one of two orders."""
    return write_files(tmp_path_factory.mktemp("mixed"), [ROWS[0], ROWS[2]])


@pytest.fixture(scope="module")
def trained(files: Path, mixed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All of `RUNS`, each by two processes."""
    folder = tmp_path_factory.mktemp("two")
    ports = free_ports(len(RUNS))
    for name, changes in RUNS.items():
        (folder / name).mkdir()
        values = recipe(mixed if name.startswith("no image") else files, **changes)
        (folder / name / "recipe.yaml").write_text(yaml.safe_dump(values))
    script = folder / "main.py"
    script.write_text(_MAIN)
    arguments = [f"{port}={folder / name}" for port, name in zip(ports, RUNS, strict=True)]
    done = subprocess.run(
        [sys.executable, str(script), *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.mark.parametrize("name", RUNS)
def test_two_processes_are_one_run(
    name: str, trained: Path, files: Path, mixed: Path, tmp_path: Path
) -> None:
    changes = {**RUNS[name], "parallel": "ddp"}
    run(mixed if name.startswith("no image") else files, tmp_path, **changes).train()
    expected, found = log(tmp_path), log(trained / name / "run")
    for key in ("loss", "norm", "tokens", "image tokens"):
        assert [x[key] for x in found] == pytest.approx([x[key] for x in expected], rel=2e-3), key
    one, two = (
        AutoModelForImageTextToText.from_pretrained(f / "model") for f in (tmp_path, trained / name / "run")
    )
    for (part, a), (_, b) in zip(one.named_parameters(), two.named_parameters(), strict=True):
        assert torch.allclose(a, b, atol=5e-3), part


def test_a_checkpoint_in_shards_is_whole(trained: Path, files: Path, tmp_path: Path) -> None:
    """One process goes on with what two had sharded."""
    again = run(files, tmp_path / "unused", steps=3, parallel="fsdp2", checkpoint_every=2)
    folder = trained / "fsdp2" / "run"
    again.folder, again.report.folder = folder, folder
    again.start()
    assert again.step == 3
    two = AutoModelForImageTextToText.from_pretrained(folder / "model").state_dict()
    assert all(torch.allclose(x, two[name], atol=1e-6) for name, x in again.model.state_dict().items())
    assert json.loads((folder / "log.jsonl").read_text().splitlines()[0])["rows"] == len(ROWS)
