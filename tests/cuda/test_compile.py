"""The compile gate: every CUDA source for every architecture, its registers and its instructions. No GPU."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import pytest

from benchmarks.ops.resources import ARCHITECTURES, ROOT, Kernel, kernels_of, nvcc

SOURCES = sorted((ROOT / "csrc" / "cuda").glob("*.cu"))

needs_nvcc = pytest.mark.skipif(nvcc() is None, reason="nvcc was not found")


@cache
def compiled(source: Path, architecture: str) -> tuple[Kernel, ...]:
    return tuple(kernels_of(source, architecture))


@needs_nvcc
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_nothing_spills(source: Path, architecture: str) -> None:
    for kernel in compiled(source, architecture):
        assert kernel.spill_stores == kernel.spill_loads == 0, kernel
        assert kernel.stack == 0, f"an array of {kernel.name} lies in local memory"


@needs_nvcc
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("name", ["attention_forward", "attention_backward"])
def test_sixteen_bit_attention_runs_on_tensor_cores(name: str, architecture: str) -> None:
    kernels = compiled(ROOT / "csrc" / "cuda" / f"{name}.cu", architecture)
    assert kernels
    for kernel in kernels:
        if kernel.tensor_core_instructions < 0:
            pytest.skip("no cuobjdump")
        assert kernel.tensor_core_instructions > 0, kernel


def test_no_inline_assembly_outside_the_device_header() -> None:
    for path in (ROOT / "csrc" / "cuda").iterdir():
        if path.name != "device.h":
            assert not re.search(r"\basm\b", path.read_text()), path
