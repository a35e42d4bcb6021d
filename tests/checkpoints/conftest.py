"""Fixtures of the conversion tests."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from dove_ext import DoveModel
from tests.checkpoints.public_checkpoints import CONFIG, pythia, taming


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    torch.manual_seed(3)
    DoveModel(CONFIG).save_pretrained(folder)
    return folder


@pytest.fixture
def ckpt(tmp_path: Path) -> Path:
    """As Lightning writes it: the loss's networks inside, other state around."""
    loss = {"loss.perceptual_loss.lin0.model.1.weight": torch.zeros(1, 64, 1, 1)}
    file = tmp_path / "last.ckpt"
    torch.save({"epoch": 3, "global_step": 9, "state_dict": taming() | loss}, file)
    return file


@pytest.fixture
def neox(tmp_path: Path) -> Path:
    file = tmp_path / "pythia.safetensors"
    save_file(pythia(), file)
    return file
