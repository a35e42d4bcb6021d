"""A record of `dove bench` in which some bars are met, some are not and some cannot be told."""

from __future__ import annotations

from typing import Any

from benchmarks.tokenizers import build, measure, systems


def row(system: str, way: str, seconds: list[float], **more: Any) -> dict[str, Any]:
    row = {"group": "encode, batch 8", "system": system, "way": way, "stage": "encode", "batch": 8,
           "size": 256, "tokens": 256, "seconds": seconds}  # fmt: skip
    return {**row, **more}


def record() -> dict[str, Any]:
    """A made-up record in which some bars are met, some are not and some cannot be told."""
    stage = {"group": "generator", "stage": build.GENERATOR}
    one = {"group": "encode, batch 1", "batch": 1}
    llama = {**one, "stage": "prefill"}
    first = {"group": "file to first word, batch 1", "batch": 1, "stage": build.FIRST_WORD}
    return {
        "benchmark": "bench", "mode": "full", "command": ["dove", "bench", "--full"], "commit": "abc",
        "utc": "2026-01-02T03:04:05Z", "wall_s": 60, "environment": {"OMP_WAIT_POLICY": "PASSIVE"},
        "machine": {"processor": "a CPU", "threads": 2, "isa": "avx2", "torch": "2", "python": "3"},
        "rows": [
            row("VQGAN-256", build.RELEASED, [10.0, 12.0, 11.0]),
            row("VQGAN-256", build.EAGER, [2.0, 2.2, 2.1]),
            row("VQGAN-256", build.COMPILED, [3.0, 3.0, 3.0]),
            row("ALIT-128", build.EAGER, [9.0, 9.0], tokens=128),
            row("ALIT", build.RELEASED, [100.0, 100.0], tokens=None),
            row("dove-base-128", build.OURS, [2.0, 2.4, 2.2], tokens=128),
            row("dove-base-256", build.OURS, [4.0, 4.0, 4.0]),
            row("dove-base-128", build.OURS, [0.2], tokens=128, **stage, lengths=[120, 130]),
            row("dove-base-256", build.OURS, [0.4], **stage),
            row("dove-base, PyTorch's ops", build.EAGER, [0.9], **stage, tokens=None),
            row("VQGAN-256", build.RELEASED, [2.0, 2.0], **one),
            row("dove-base-128", build.OURS_FP32, [2.5, 2.5], tokens=128, **one),
            row("Llama", "cpu", [1.0, 1.0], tokens=128, **llama),
            row("Llama", "cpu", [2.0, 2.0], tokens=256, **llama),
            row("dove-base-32", build.OURS, [1.0], size=128, group="image size", tokens=32),
            row("dove-base-32", build.OURS, [2.0], size=384, group="image size", tokens=32),
            {**row("VQGAN-256", build.RELEASED, [6.0, 6.0], **first, lengths=[256] * 8), "cache_mib": 12.5},
            {**row("dove-base-own", build.OURS_FP32, [4.0, 4.0], tokens=None, **first, lengths=[122] * 8),
             "cache_mib": 7.0},
            {**measure.describe(systems.find("TiTok S-128", build.EAGER), "encode", 8),
             "group": "encode, batch 8", "missing": "ModuleNotFoundError: no peer"},
        ],
        "memory": [
            {"system": "dove-base-256", "way": build.OURS, "batch": 64, "stage": "encode", "peak_mib": 30.0},
            {"system": "dove-base, PyTorch's ops", "way": build.EAGER, "batch": 64, "stage": "encode",
             "peak_mib": 100.0},
        ],
        "gflop": [
            {"system": "VQGAN-256", "tokens": 256, "stage": "encode", "gflop": 139.5},
            {"system": "Llama", "way": "cpu", "tokens": 256, "stage": "prefill", "gflop": 75.0},
        ],
    }  # fmt: skip
