"""Registers, shared memory and spills of every CUDA kernel, from the compiler: no GPU is needed.

    python -m benchmarks.ops.resources              # all; writes benchmarks/results/resources.json
    python -m benchmarks.ops.resources pack.cu --architectures sm_80 --json pack.json

tests/cuda/test_compile.py holds the kernels of the installed build to limits.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path

from dove_ext.atomic import atomic_write

from ..record import RESULTS

ROOT = Path(__file__).parents[2]
ARCHITECTURES = ("sm_80", "sm_90a")


@dataclass(frozen=True)
class Kernel:
    """What ptxas says of one kernel: bytes a thread for stack and spills."""

    source: str
    name: str
    architecture: str
    registers: int
    stack: int
    spill_stores: int
    spill_loads: int
    tensor_core_instructions: int  # HMMA in the disassembly; -1 without a disassembler


def nvcc() -> str | None:
    """The compiler of a real toolkit: an nvcc on PATH may be a wrapper that calls it."""
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH") or "/usr/local/cuda"
    found = shutil.which("nvcc", path=f"{home}/bin") or shutil.which("nvcc")
    if found is None:
        return None
    run = subprocess.run(
        [found, "--dryrun", "-x", "cu", "-c", os.devnull], capture_output=True, text=True, check=False
    )
    here = re.search(r"_HERE_=(\S+)", run.stdout + run.stderr)
    real = Path(here[1]) / "nvcc" if here else Path(found)
    return str(real if real.exists() else found)


def cuobjdump() -> str | None:
    """The disassembler of the toolkit, or the one that comes with Triton."""
    compiler = nvcc()
    folders = [str(Path(compiler).parent)] if compiler else []
    spec = find_spec("triton")
    if spec is not None and spec.submodule_search_locations:
        folders.append(str(Path(next(iter(spec.submodule_search_locations))) / "backends" / "nvidia" / "bin"))
    return shutil.which("cuobjdump", path=os.pathsep.join([*folders, os.environ.get("PATH", "")]))


def kernels_of(source: Path, architecture: str) -> list[Kernel]:
    """Compile one source for one architecture (code for the device only) and read what ptxas reports."""
    compiler = nvcc()
    if compiler is None:
        raise RuntimeError("nvcc was not found; put it on PATH or set CUDA_HOME")
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder) / "kernels.cubin"
        command = [
            compiler, "-std=c++17", "-O3", "-cubin", "-Xptxas", "-v", "-o", str(cubin),
            "-gencode", f"arch={architecture.replace('sm_', 'compute_')},code={architecture}",
            f"-I{ROOT / 'csrc' / 'include'}", f"-I{ROOT / 'csrc' / 'cuda'}", str(source),
        ]  # fmt: skip
        run = subprocess.run(command, capture_output=True, text=True, check=False)
        if run.returncode != 0:
            raise RuntimeError(f"nvcc refused {source.name} for {architecture}:\n{run.stderr[:4000]}")
        counts = _tensor_core_instructions(cubin)
    return [
        Kernel(
            source.name,
            _readable(name),
            architecture,
            *numbers,
            -1 if counts is None else counts.get(name, 0),
        )
        for name, numbers in _reports(run.stderr)
    ]


def _reports(text: str) -> Iterator[tuple[str, tuple[int, int, int, int]]]:
    """(mangled name, (registers, stack, spill stores, spill loads)) of every kernel in ptxas's report."""
    name, frame = "", (0, 0, 0)
    for line in text.splitlines():
        if match := re.search(r"Function properties for (\S+)", line):
            name = match[1]
        elif match := re.search(
            r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", line
        ):
            frame = (int(match[1]), int(match[2]), int(match[3]))
        elif match := re.search(r"Used (\d+) registers", line):
            yield name, (int(match[1]), *frame)


def _tensor_core_instructions(cubin: Path) -> dict[str, int] | None:
    tool = cuobjdump()
    if tool is None or cubin.stat().st_size == 0:
        return None
    run = subprocess.run([tool, "-sass", str(cubin)], capture_output=True, text=True, check=True)
    counts: dict[str, int] = {}
    for part in run.stdout.split("Function : ")[1:]:
        counts[part.split(None, 1)[0]] = len(re.findall(r"\bHMMA\.", part))
    return counts


def _readable(name: str) -> str:
    tool = shutil.which("c++filt")
    if tool is None:
        return name
    text = subprocess.run([tool, name], capture_output=True, text=True, check=True).stdout.strip()
    text = re.sub(r"\((?!anonymous).*$", "", text.replace("(anonymous namespace)::", ""))
    return text.replace("void ", "").replace("dove::cuda::", "")


def main(options: list[str] | None = None) -> int:
    """Compile, print a line a kernel, and write the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    folder = ROOT / "csrc" / "cuda"
    names = sorted(path.name for path in folder.glob("*.cu"))
    parser.add_argument("sources", nargs="*", help="files of csrc/cuda (default: all)")
    parser.add_argument("--architectures", nargs="+", default=ARCHITECTURES, metavar="SM")
    parser.add_argument(
        "--json", type=Path, default=RESULTS / "resources.json", metavar="PATH",
        help="where the table goes (default: benchmarks/results/resources.json)",
    )  # fmt: skip
    args = parser.parse_args(options)
    if unknown := [name for name in args.sources if name not in names]:
        parser.error(f"csrc/cuda has no {', '.join(unknown)}; choose from {', '.join(names)}")
    compiler = nvcc()
    if compiler is None:
        parser.error("nvcc was not found; put it on PATH or set CUDA_HOME")
    rows = []
    for name in args.sources or names:
        for architecture in args.architectures:
            rows += kernels_of(folder / name, architecture)
            print(f"{name} {architecture}", file=sys.stderr)
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=True).stdout
    release = re.search(r"release [^\n]*", version)
    table = {"nvcc": release[0] if release else "", "kernels": [asdict(r) for r in rows]}
    with atomic_write(args.json) as temporary:
        temporary.write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")
    for row in rows:
        print(f"{row.name:70} {row.architecture:7} {row.registers:4} registers, {row.spill_stores} B spilled")
    return 0


if __name__ == "__main__":
    sys.exit(main())
