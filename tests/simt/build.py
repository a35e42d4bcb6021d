"""Compiles the kernel sources of csrc/cuda with g++ against the emulation, into one Python module."""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import sysconfig
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import pybind11

ROOT = Path(__file__).parents[2]
CSRC = ROOT / "csrc"
HERE = Path(__file__).parent

COMPILER = os.environ.get("CXX") or shutil.which("g++") or shutil.which("c++")
_LINKER = ["-fuse-ld=gold"] if shutil.which("ld.gold") else []  # a third of the time, a hundred times
_FLAGS = ["-std=c++17", "-fPIC", "-fvisibility=hidden", "-fno-strict-aliasing", "-ffp-contract=off", "-w"]
_INCLUDE = [f"-I{CSRC / 'include'}", f"-I{CSRC / 'cuda'}", f"-I{ROOT / 'tests'}"]
_PYBIND = [f"-I{pybind11.get_include()}", f"-I{sysconfig.get_paths()['include']}"]


def kernel_sources() -> list[Path]:
    return sorted((CSRC / "cuda").glob("*.cu"))


def _files(source: Path, include: tuple[Path, ...]) -> list[Path]:
    """`source` and every file of the project that it includes, directly or through another."""
    folders = (*include, CSRC / "include", CSRC / "cuda", ROOT / "tests")
    found, todo = [], [source]
    while todo:
        path = todo.pop()
        if path in found:
            continue
        found.append(path)
        for name in re.findall(r'^#include "([^"]+)"', path.read_text(), re.MULTILINE):
            candidates = (folder / name for folder in (path.parent, *folders))
            todo += [p.resolve() for p in candidates if p.exists()][:1]
    return found


def parts(source: Path) -> set[str]:
    """The names of the files of csrc/cuda that a kernel source consists of."""
    return {path.name for path in _files(source, ()) if path.parent == CSRC / "cuda"}


def _key(source: Path, flags: list[str], include: tuple[Path, ...] = ()) -> str:
    """Changes with the compiler, the flags, and every file that `source` consists of."""
    key = hashlib.sha256(" ".join([str(COMPILER), pybind11.__version__, *flags]).encode())
    for path in _files(source, include):
        key.update(path.name.encode() + path.read_bytes())
    return key.hexdigest()[:24]


@contextmanager
def _whole(target: Path) -> Iterator[Path]:
    """A path to write to that becomes `target` if nothing fails."""
    part = target.with_suffix(f".{os.getpid()}.part")
    yield part
    part.rename(target)


def _run_compiler(source: Path, language: str, flags: list[str], target: Path) -> None:
    with _whole(target) as part:
        command = [str(COMPILER), *flags, *_INCLUDE, "-x", language, "-c", str(source), "-o", str(part)]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        if result.returncode != 0:
            raise RuntimeError(f"g++ refused {source.name}:\n{result.stderr[:4000]}")


def _standard(flags: list[str], cache: Path) -> Path:
    """standard.h in `cache`, beside it what the compiler has made of it: most of a small kernel's time."""
    source = HERE / "standard.h"
    target = cache / f"standard-{_key(source, flags)}.h"
    compiled = target.with_suffix(".h.gch")
    if not compiled.exists():
        with _whole(target) as part:
            shutil.copy(source, part)
        _run_compiler(target, "c++-header", flags, compiled)
    return target


def _compile(source: Path, flags: list[str], cache: Path, include: tuple[Path, ...] = ()) -> Path:
    """One object file, taken from `cache` if nothing that it consists of has changed since."""
    flags = [*_FLAGS, *flags, *(f"-I{folder}" for folder in include)]
    target = cache / f"{source.stem}-{_key(source, flags, include)}.o"
    if not target.exists():
        _run_compiler(source, "c++", flags, target)
    return target


def _kernel(source: Path, folder: Path, cache: Path, optimise: str, include: tuple[Path, ...] = ()) -> Path:
    standard = _standard([*_FLAGS, optimise], cache)
    return _compile(source, [optimise, "-include", str(standard)], folder, include)


@functools.cache
def _objects(cache: Path) -> dict[Path, Path]:
    """Every object file of the module by its source, as many at a time as there are processors."""
    kernels = [*kernel_sources(), *(HERE / name for name in ("block.cpp", "memory.cpp", "selftest.cu"))]
    kernels += [CSRC / "cpu" / "status.cpp"]
    module = HERE / "module.cpp"
    _standard([*_FLAGS, "-O1"], cache)  # before two threads would make it
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # the longest ones first
        # It only converts arguments: what the compiler would make faster takes longer than it runs.
        made = {module: pool.submit(_compile, module, ["-O0", *_PYBIND], cache)}
        made |= {s: pool.submit(_kernel, s, cache, cache, "-O1") for s in kernels}
    return {source: object_file.result() for source, object_file in made.items()}


def build(folder: Path, cache: Path, replaced: dict[str, dict[str, str]] | None = None) -> Path:
    """Build `_simt` in `folder` and return the module's path.

    Args:
        folder: where the module goes.
        cache: object files of unchanged sources, kept between calls and sessions.
        replaced: kernel sources that are compiled anew, and the text of files of csrc/cuda to use in each
            instead of what is there, by name (for mutants).
    """
    folder.mkdir(parents=True, exist_ok=True)
    cache.mkdir(parents=True, exist_ok=True)
    front = []  # of functions that several sources share the linker keeps the first
    for name, texts in (replaced or {}).items():
        changed = folder / name
        changed.mkdir()
        for part in parts(CSRC / "cuda" / name):  # "header.h" is looked for beside the file that includes it
            (changed / part).write_text(texts.get(part) or (CSRC / "cuda" / part).read_text())
        # What is tried on few rows takes longer to optimise than to run; the vocabulary makes the exception.
        optimise = "-O1" if name.startswith("eos_") else "-O0"
        front.append(_kernel(changed / name, folder, cache, optimise, (changed,)))
    others = [o for source, o in _objects(cache).items() if source.name not in (replaced or {})]
    module = folder / f"_simt{sysconfig.get_config_var('EXT_SUFFIX')}"
    objects = map(str, [*front, *others])
    command = [str(COMPILER), "-shared", *_LINKER, "-o", str(module), *objects, "-lpthread"]
    subprocess.run(command, check=True, capture_output=True)
    return module


def load(path: Path) -> ModuleType:
    """Import a built module from its path, beside others: pybind11 knows modules by their whole names."""
    spec = importlib.util.spec_from_file_location(f"{path.parent.name}._simt", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
