"""The emulated module, built once a session."""

from __future__ import annotations

import fcntl
from pathlib import Path
from types import ModuleType

import pytest

from tests.simt import build


@pytest.fixture(scope="session")
def simt_cache(request: pytest.FixtureRequest) -> Path:
    assert request.config.cache is not None
    return request.config.cache.mkdir("simt")


@pytest.fixture(scope="session")
def simt(tmp_path_factory: pytest.TempPathFactory, simt_cache: Path) -> ModuleType:
    if build.COMPILER is None:
        pytest.skip("no C++ compiler")
    with (simt_cache / "lock").open("w") as lock:  # of several test processes one compiles
        fcntl.flock(lock, fcntl.LOCK_EX)
        return build.load(build.build(tmp_path_factory.mktemp("simt"), simt_cache))
