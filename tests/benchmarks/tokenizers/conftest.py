"""Peers that are only run, never trained, and the command in this process."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import EntryPoint
from typing import Any

import pytest
import torch

import dove_ext.cli
from benchmarks.tokenizers import build

_KEPT_MODELS = build.peer, build.dove_model


@pytest.fixture(autouse=True)
def models_go() -> Iterator[None]:
    """A benchmark keeps what it measures; a session of tests cannot."""
    yield
    for kept in _KEPT_MODELS:
        kept.cache_clear()


@pytest.fixture(autouse=True)
def no_grad() -> Iterator[None]:
    torch.manual_seed(0)
    with torch.no_grad():
        yield


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """`dove bench ...` in this process: (exit code, standard output, standard error)."""
    entry = EntryPoint("bench", "benchmarks.tokenizers.cli:command", "dove.commands.clone")
    monkeypatch.setattr(dove_ext.cli, "entry_points", lambda group: [entry])

    def run(*arguments: object) -> tuple[int, str, str]:
        code = dove_ext.cli.main(["bench", *map(str, arguments)])
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err
        return code, captured.out, captured.err

    return run
