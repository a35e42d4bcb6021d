"""Compiles the kernel sources of csrc/cuda with g++ against the emulation, into one Python module."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import sysconfig
from pathlib import Path
from types import ModuleType

import pybind11

ROOT = Path(__file__).parents[2]
CSRC = ROOT / "csrc"
HERE = Path(__file__).parent

COMPILER = os.environ.get("CXX") or shutil.which("g++") or shutil.which("c++")
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


def _compile(source: Path, flags: list[str], cache: Path, include: tuple[Path, ...] = ()) -> Path:
    """One object file, taken from `cache` if nothing that it consists of has changed since."""
    flags = [*_FLAGS, *flags, *(f"-I{folder}" for folder in include), *_INCLUDE]
    key = hashlib.sha256(" ".join([str(COMPILER), pybind11.__version__, *flags[: -len(_INCLUDE)]]).encode())
    for path in _files(source, include):
        key.update(path.name.encode() + path.read_bytes())
    target = cache / f"{source.stem}-{key.hexdigest()[:24]}.o"
    if not target.exists():
        part = target.with_suffix(f".{os.getpid()}.part")
        command = [str(COMPILER), *flags, "-x", "c++", "-c", str(source), "-o", str(part)]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        if result.returncode != 0:
            raise RuntimeError(f"g++ refused {source.name}:\n{result.stderr[:4000]}")
        part.rename(target)
    return target


def build(folder: Path, cache: Path, replaced: dict[str, str] | None = None) -> Path:
    """Build `_simt` in `folder` and return the module's path.

    Args:
        folder: where the module goes.
        cache: object files of unchanged sources, kept between calls and sessions.
        replaced: text of files of csrc/cuda to use instead of what is there, by name (for mutants).
    """
    folder.mkdir(parents=True, exist_ok=True)
    cache.mkdir(parents=True, exist_ok=True)
    replaced = replaced or {}
    mutants = folder / "csrc"
    for name, text in replaced.items():
        mutants.mkdir(exist_ok=True)
        (mutants / name).write_text(text)
    objects = []
    for source in kernel_sources():
        # A changed header concerns the sources that name it, directly or through another header.
        own = parts(source)
        if not own & replaced.keys():
            objects.append(_compile(source, ["-O1"], cache))
            continue
        for name in own - replaced.keys():  # "header.h" is looked for beside the file that includes it
            shutil.copy(CSRC / "cuda" / name, mutants / name)
        objects.append(_compile(mutants / source.name, ["-O1"], folder, (mutants,)))
    machine = [HERE / name for name in ("block.cpp", "memory.cpp", "selftest.cu")]
    objects += [_compile(source, ["-O1"], cache) for source in (*machine, CSRC / "cpu" / "status.cpp")]
    bindings = [CSRC / "bindings" / name for name in ("arguments.cpp", "cuda.cpp")]
    objects += [_compile(s, ["-O0", *_PYBIND], cache) for s in (*bindings, HERE / "module.cpp")]
    module = folder / f"_simt{sysconfig.get_config_var('EXT_SUFFIX')}"
    command = [str(COMPILER), "-shared", "-o", str(module), *map(str, objects), "-lpthread"]
    subprocess.run(command, check=True, capture_output=True)
    return module


def load(path: Path) -> ModuleType:
    """Import a built module from its path, beside others: pybind11 knows modules by their whole names."""
    spec = importlib.util.spec_from_file_location(f"{path.parent.name}._simt", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
