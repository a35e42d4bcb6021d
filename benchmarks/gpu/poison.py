"""A pytest plugin: fresh memory is NaN (integers: the largest), so what a kernel leaves unwritten shows.

    python -m pytest -p benchmarks.gpu.poison ...

Failures are also printed as they come, for a run that may be cut off.
"""

from __future__ import annotations

import pytest


def pytest_configure(config: pytest.Config) -> None:
    """Poison the memory of a process that runs tests; one that hands them out does not load torch for it."""
    if getattr(config.option, "numprocesses", None) and not hasattr(config, "workerinput"):
        return
    import torch

    torch.use_deterministic_algorithms(True, warn_only=True)  # without it the next line has no effect
    torch.utils.deterministic.fill_uninitialized_memory = True


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Print one line for a failure."""
    if report.failed:
        lines = [line for line in report.longreprtext.splitlines() if line.startswith("E ")]
        print(f"\nFAILED {report.nodeid}: {(lines or [''])[0].removeprefix('E').strip()[:200]}", flush=True)
