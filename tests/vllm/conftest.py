"""Tests in an environment that `make test-vllm` makes; elsewhere there is nothing to collect."""

from __future__ import annotations

import os
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path

import pytest

collect_ignore_glob = ["test_*.py"] if find_spec("vllm") is None else []

for name, value in {
    "VLLM_CPU_KVCACHE_SPACE": "1",  # GB
    "VLLM_LOGGING_LEVEL": "WARNING",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
    "OMP_WAIT_POLICY": "PASSIVE",
}.items():
    if not collect_ignore_glob:
        os.environ.setdefault(name, value)


@pytest.fixture(scope="session", autouse=True)
def plugin() -> None:
    """Engines find it by its entry point, each in a process of its own."""
    found = {point.name for point in entry_points(group="vllm.general_plugins")}
    assert "dove_vlm" in found, "there is no metadata of dove_ext here; run `make test-vllm`"


@pytest.fixture(scope="session")
def llama_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """dove-tiny before a Llama of two layers, which reads tiles, too."""
    from tests.vllm.served import save

    return save(tmp_path_factory.mktemp("llama"), "dove-tiny", tile_separators=True)
