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

from dove_train.distributed import place
from dove_train.settings import TrainingError
from tests.train.small import PARTS, PHOTOS, recipe

_STAGES = {"joint": {"steps": 4, "train": PARTS}, "head": {"steps": 2, "train": ["head"]}}
_COMMON = {"bf16": False, "stages": _STAGES, "name": "same"}
_ALIGNED = {"features": {"steps": 4, "path": "features", "train": ["features"]}, "head": _STAGES["head"]}
_MAIN = "from dove_ext.cli import main; raise SystemExit(main())"


def train(folder: Path, processes: int, **changes: Any) -> list[dict[str, Any]]:
    folder.mkdir(exist_ok=True)
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe(**{**_COMMON, **changes}), sort_keys=False))
    (folder / "main.py").write_text(_MAIN)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launch = [
        sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={processes}",
        "--master-addr=127.0.0.1", f"--master-port={port}",
    ]  # fmt: skip
    command = [*(launch if processes > 1 else [sys.executable]), str(folder / "main.py"), "train"]
    result = subprocess.run(
        [*command, str(folder / "recipe.yaml"), "-o", str(folder / "run")],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    records = [json.loads(line) for line in (folder / "run" / "log.jsonl").read_text().splitlines()]
    return [record for record in records if "loss" in record or "warning" in record]


def weights(folder: Path, step: int) -> torch.Tensor:
    state = torch.load(folder / "run" / "checkpoints" / f"step-{step:07d}.pt", weights_only=True)["averaged"]
    return torch.cat([value.flatten().double() for value in state.values()])


@pytest.mark.parametrize(
    "changes",
    [
        {"parallel": "ddp", "gan_weight": 1e-3, "gan_start": 1},
        {"parallel": "ddp", "eos_rule": "paper"},
        {"parallel": "fsdp2"},
        {"parallel": "ddp", "stages": _ALIGNED},
        {"parallel": "fsdp2", "stages": _ALIGNED},
    ],
    ids=["ddp, adversarial", "ddp, paper's rule", "fsdp2", "ddp, features", "fsdp2, features"],
)
def test_two_processes_equal_one_with_the_doubled_batch(
    tmp_path: Path, mobilenet_file: Path, changes: dict[str, Any]
) -> None:
    photos = tmp_path / "photos"
    shutil.copytree(PHOTOS, photos)
    for number in range(3):
        (photos / f"broken-{number}.jpg").write_bytes(b"no picture")
    changes = {**changes, "data": [str(photos)], "alignment_weights": str(mobilenet_file)}
    changes |= {"checkpoint_every": 1, "keep_checkpoints": 9}
    one = train(tmp_path / "one", 1, batch_size=4, **changes)
    two = train(tmp_path / "two", 2, batch_size=2, **changes)
    assert len(one) == len(two) == 6 + 3  # steps, and an unreadable image each, whichever process met it
    for a, b in zip(one, two, strict=True):
        assert set(a) == set(b)
        for name in set(a) - {"images/s"}:
            expected = pytest.approx(a[name], rel=2e-3, abs=1e-6) if isinstance(a[name], float) else a[name]
            assert b[name] == expected, (name, a, b)
    end = weights(tmp_path / "one", 6)
    change = (end - weights(tmp_path / "one", 1)).norm()
    assert (weights(tmp_path / "two", 6) - end).norm() < 1e-3 * change


def test_each_process_has_its_own_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "empty", lambda *_, **__: None)  # there need not be any
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert place("cuda") == torch.device("cuda", 1)
    with pytest.raises(TrainingError, match="'cuda:0' is one GPU for several processes; use auto or cuda"):
        place("cuda:0")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")
    assert place("cuda:0") == torch.device("cuda", 0)


@pytest.mark.parametrize("parallel", ["ddp", "fsdp2"])
def test_two_processes_resume_to_the_bit(tmp_path: Path, parallel: str) -> None:
    whole = train(tmp_path / "whole", 2, parallel=parallel)
    train(tmp_path / "parts", 2, parallel=parallel, checkpoint_every=2, keep_checkpoints=9)
    for name in ("step-0000004.pt", "step-0000006.pt"):  # back to the middle of the first stage
        (tmp_path / "parts" / "run" / "checkpoints" / name).unlink()
    again = train(tmp_path / "parts", 2, parallel=parallel)
    for record in [*whole, *again]:
        del record["images/s"]
    assert again == whole
