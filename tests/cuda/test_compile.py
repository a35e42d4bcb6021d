"""The CUDA kernels of the installed build, as ptxas made them: registers, local memory, instructions."""

from __future__ import annotations

import re
import subprocess
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

from benchmarks.ops.resources import ARCHITECTURES, ROOT, cuobjdump
from dove_ext import _C

SOURCES = sorted((ROOT / "csrc" / "cuda").glob("*.cu"))

needs_kernels = pytest.mark.skipif(
    not _C.cuda_archs() or cuobjdump() is None, reason="no CUDA kernels in this build, or no cuobjdump here"
)


class Built(NamedTuple):
    architecture: str
    name: str  # mangled; it holds the source's name
    registers: int
    stack: int
    local: int


def dump(*options: str) -> str:
    command = [str(cuobjdump()), *options, str(_C.__file__)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@cache
def built() -> tuple[Built, ...]:
    kernels, architecture, name = [], "", ""
    for line in dump("--dump-resource-usage").splitlines():
        if match := re.match(r"arch = (\S+)", line):
            architecture = match[1]
        elif match := re.match(r"\s*Function (\S+):", line):
            name = match[1]
        elif match := re.match(r"\s*REG:(\d+) STACK:(\d+) .*LOCAL:(\d+)", line):
            kernels.append(Built(architecture, name, *map(int, match.groups())))
    return tuple(kernels)


def kernels_of(source: str, architecture: str) -> list[Built]:
    return [k for k in built() if k.architecture == architecture and f"_{source}_cu_" in k.name]


@needs_kernels
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_nothing_spills(source: Path, architecture: str) -> None:
    kernels = kernels_of(source.stem, architecture)
    assert bool(kernels) == ("__global__" in source.read_text())
    for kernel in kernels:
        assert kernel.stack == kernel.local == 0, f"{kernel}: spilled registers, or an array in local memory"
        assert kernel.registers <= 255


@needs_kernels
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("source", ["attention_forward", "attention_backward"])
def test_sixteen_bit_attention_runs_on_tensor_cores(source: str, architecture: str) -> None:
    # The template is the same for every head dimension, and disassembly is slow.
    kernels = [k for k in kernels_of(source, architecture) if "Li64E" in k.name]
    code = dump("-sass", "-arch", architecture, "-fun", ",".join(k.name for k in kernels))
    parts = {part.split(None, 1)[0]: part for part in code.split("Function : ")[1:]}
    assert parts and parts.keys() == {k.name for k in kernels}
    for name, part in parts.items():
        assert re.search(r"\bHMMA\.", part), name


def test_no_inline_assembly_outside_the_device_header() -> None:
    for path in (ROOT / "csrc" / "cuda").iterdir():
        if path.name != "device.h":
            assert not re.search(r"\basm\b", path.read_text()), path
