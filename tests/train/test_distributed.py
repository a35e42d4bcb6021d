"""Two processes that are one run: the same losses as one process with the doubled batch, DDP and FSDP2."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from dove_ext.cli import main
from dove_train.distributed import place
from dove_train.settings import TrainingError
from tests.train.small import PARTS, PHOTOS, recipe

_STAGES: dict[str, dict[str, Any]] = {
    "joint": {"steps": 3, "train": PARTS},
    "features": {"steps": 2, "path": "features", "train": ["features"]},
    "head": {"steps": 2, "train": ["head"]},
}
_COMMON = {"stages": _STAGES, "name": "same"}
STEPS = sum(stage["steps"] for stage in _STAGES.values())
# Each run meets at a port of its own: torchrun's store still holds the addresses of the run before. A folder
# that is not there yet begins as a copy of another, back in the middle of its first stage: rank 0 makes it,
# and renames it when it is whole.
_MAIN = """\
import gc, os, shutil, sys, time
gc.disable()  # of what is imported nothing goes
from pathlib import Path
from dove_ext.cli import main
from dove_ext.memory import let_idle_threads_sleep
let_idle_threads_sleep()  # before the next line loads torch
import dove_train.stage_run
dove_train.stage_run.STATISTICS_IMAGES = 16  # as in this folder's conftest.py
gc.freeze()
gc.enable()
os.environ["TORCHELASTIC_USE_AGENT_STORE"] = "False"
for argument in sys.argv[1:]:
    os.environ["MASTER_PORT"], folder, whole = argument.split("=", 2)
    if whole and os.environ["RANK"] == "0":
        new = Path(folder + ".new")
        shutil.copytree(whole, new)
        for checkpoint in Path(new, "run", "checkpoints").glob("step-*.pt"):
            if checkpoint.stem > "step-0000002":
                checkpoint.unlink()
        new.rename(folder)
    while not Path(folder).exists():  # the other process may be here first
        time.sleep(0.01)
    if code := main(["train", f"{folder}/recipe.yaml", "-o", f"{folder}/run"]):
        raise SystemExit(code)
"""

# Each goes through all stages: what a run costs beside its steps is most of it.
EQUAL: dict[str, dict[str, Any]] = {
    # The other rule about stops is that of all others.
    "ddp, adversarial": {"parallel": "ddp", "gan_weight": 1e-3, "gan_start": 1, "eos_rule": "paper"},
    "fsdp2": {"parallel": "fsdp2"},
}
RESUMED = {"ddp": "ddp, adversarial", "fsdp2": "fsdp2"}


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def write_recipe(folder: Path, **changes: Any) -> None:
    folder.mkdir(parents=True)
    text = yaml.safe_dump(recipe(**{**_COMMON, **changes}), sort_keys=False)
    (folder / "recipe.yaml").write_text(text)


def train_with_two(folders: dict[Path, Path | None], script: Path) -> None:
    """Train in each folder, one run after the other by the same processes: to start some takes seconds.

    Args:
        folders: where a recipe is, or nothing yet, and then the folder whose run is to be resumed there.
        script: what the processes run, a file to write.
    """
    script.write_text(_MAIN)
    port, *ports = free_ports(1 + len(folders))
    command = [
        sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--master-addr=127.0.0.1",
        f"--master-port={port}", str(script),
    ]  # fmt: skip
    for port, (folder, whole) in zip(ports, folders.items(), strict=True):
        command.append(f"{port}={folder}={whole or ''}")
    result = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stderr[-3000:]


def log(folder: Path) -> list[dict[str, Any]]:
    records = [json.loads(line) for line in (folder / "run" / "log.jsonl").read_text().splitlines()]
    return [record for record in records if "loss" in record or "warning" in record]


def weights(folder: Path, step: int) -> torch.Tensor:
    state = torch.load(folder / "run" / "checkpoints" / f"step-{step:07d}.pt", weights_only=True)["averaged"]
    return torch.cat([value.flatten().double() for value in state.values()])


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, mobilenet_file: Path) -> Path:
    """one/NAME and two/NAME of `EQUAL`; parts/PARALLEL of `RESUMED`, whose second half ran anew."""
    place = tmp_path_factory.mktemp("distributed")
    photos = place / "photos"
    shutil.copytree(PHOTOS, photos)
    for number in range(3):
        (photos / f"broken-{number}.jpg").write_bytes(b"no picture")
    always = {"data": [str(photos)], "alignment_weights": str(mobilenet_file), "keep_checkpoints": 9}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dove_train.stage_run.STATISTICS_IMAGES", 16)
        for name, changes in EQUAL.items():
            one, two = place / "one" / name, place / "two" / name
            write_recipe(one, **always, **changes, batch_size=4, checkpoint_every=1)
            write_recipe(two, **always, **changes, batch_size=2, checkpoint_every=2)
            assert main(["train", f"{one}/recipe.yaml", "-o", f"{one}/run"]) == 0
    folders: dict[Path, Path | None] = {place / "two" / name: None for name in EQUAL}
    folders |= {place / "parts" / parallel: place / "two" / name for parallel, name in RESUMED.items()}
    train_with_two(folders, place / "main.py")
    return place


@pytest.mark.parametrize("name", EQUAL)
def test_two_processes_equal_one_with_the_doubled_batch(trained: Path, name: str) -> None:
    one, two = log(trained / "one" / name), log(trained / "two" / name)
    # Steps, and an unreadable image each, whichever process met it.
    assert len(one) == len(two) == STEPS + 3
    for a, b in zip(one, two, strict=True):
        assert set(a) == set(b)
        for key in set(a) - {"images/s"}:
            expected = pytest.approx(a[key], rel=2e-3, abs=1e-6) if isinstance(a[key], float) else a[key]
            assert b[key] == expected, (key, a, b)
    end = weights(trained / "one" / name, STEPS)
    change = (end - weights(trained / "one" / name, 1)).norm()
    assert (weights(trained / "two" / name, STEPS) - end).norm() < 1e-3 * change


def test_each_process_has_its_own_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "empty", lambda *_, **__: None)  # there need not be any
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert place("cuda") == torch.device("cuda", 1)
    with pytest.raises(TrainingError, match="'cuda:0' is one GPU for several processes; use auto or cuda"):
        place("cuda:0")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")
    assert place("cuda:0") == torch.device("cuda", 0)


@pytest.mark.parametrize("parallel", RESUMED)
def test_two_processes_resume_to_the_bit(trained: Path, parallel: str) -> None:
    runs = trained / "two" / RESUMED[parallel], trained / "parts" / parallel
    whole, again = ([record for record in log(run) if "loss" in record] for run in runs)
    for record in [*whole, *again]:
        del record["images/s"]
    assert again == whole and len(whole) == STEPS
    assert torch.equal(*(weights(run, STEPS) for run in runs))
