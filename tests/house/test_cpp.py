"""The library without Python: built, installed, found by examples/cpp, and the same answers as dove_ext."""

from __future__ import annotations

import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from dove_ext import _C, ops

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "cpp"
CMAKE = shutil.which("cmake")
COMPILER = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++")

pytestmark = pytest.mark.skipif(CMAKE is None or COMPILER is None, reason="no cmake or no C++ compiler")


def cmake(*arguments: str | Path) -> str:
    """Runs cmake and returns what it printed."""
    done = subprocess.run([str(CMAKE), *map(str, arguments)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


GENERATOR = ("-G", "Ninja") if shutil.which("ninja") else ()


def installed(folder: Path) -> Path:
    """The prefix, in a folder, of a library of the portable CPU kernels."""
    said = cmake(
        "-S", ROOT, "-B", folder / "dove", *GENERATOR, "-DDOVE_CUDA=OFF", "-DDOVE_PORTABLE=ON",
        "-DCMAKE_DISABLE_FIND_PACKAGE_Python=ON", "-DCMAKE_DISABLE_FIND_PACKAGE_pybind11=ON",
        f"-DCMAKE_INSTALL_PREFIX={folder / 'prefix'}",
    )  # fmt: skip
    assert "Python module: none (DOVE_PYTHON is OFF), only the library" in said
    cmake("--build", folder / "dove", "--parallel", str(os.cpu_count() or 1))
    cmake("--install", folder / "dove")
    shutil.rmtree(folder / "dove")  # the installed files are enough
    return folder / "prefix"


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """stop_and_pack, against an installed library."""
    folder = tmp_path_factory.mktemp("cpp")
    cmake(
        "-S", EXAMPLE, "-B", folder / "example", *GENERATOR, f"-DCMAKE_PREFIX_PATH={installed(folder)}",
        "-DCMAKE_BUILD_TYPE=Release",
    )  # fmt: skip
    cmake("--build", folder / "example")
    return folder / "example" / "stop_and_pack"


@pytest.fixture(scope="module")
def states(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("states") / "states.bin"
    photos = [str(ROOT / "examples" / "photos" / f"{name}.jpg") for name in ("cat", "rocket")]
    with pytest.MonkeyPatch.context() as patch:  # to load torch in a process of its own takes seconds
        patch.setattr(sys, "argv", ["states.py", *photos, str(path)])
        runpy.run_path(str(EXAMPLE / "states.py"), run_name="__main__")
    return path


def test_the_program_stops_and_packs_as_dove_ext_does(program: Path, states: Path, tmp_path: Path) -> None:
    header, values = np.fromfile(states, np.int64, 5), np.fromfile(states, np.float32, offset=40)
    images, positions, width, vocabulary, eos_id = header.tolist()
    sizes = (images * positions * width, vocabulary * width, vocabulary)
    assert len(values) == sum(sizes)
    hidden, weight, bias = torch.from_numpy(values).split(sizes)
    hidden, weight = hidden.view(images, positions, width), weight.view(vocabulary, width)
    best = max(isa for isa in range(3) if _C.force_cpu_isa(isa))
    _C.force_cpu_isa(0)  # as in the library that the program was linked with
    try:
        lengths = ops.eos_scan(hidden, weight, bias, eos_id=eos_id).clamp_min(1)
    finally:
        _C.force_cpu_isa(best)
    assert 1 < lengths.min() < lengths.max() <= positions
    expected = ops.pack(hidden, ops.lengths_to_cu_seqlens(lengths))

    packed = tmp_path / "packed.bin"
    done = subprocess.run([program, states, packed], capture_output=True, text=True, check=True)
    assert [int(line) for line in done.stdout.split()] == lengths.tolist()
    assert packed.read_bytes() == expected.numpy().tobytes()


def test_a_file_that_is_cut_short_is_refused(program: Path, states: Path, tmp_path: Path) -> None:
    (tmp_path / "short.bin").write_bytes(states.read_bytes()[:-4])
    command = [program, tmp_path / "short.bin", tmp_path / "packed.bin"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "cut short" in done.stderr
    assert not (tmp_path / "packed.bin").exists()


@pytest.mark.parametrize(("archs", "needs"), [("", ["Threads"]), ("80,90a-real", ["Threads", "CUDAToolkit"])])
def test_the_package_finds_what_its_library_was_linked_with(
    archs: str, needs: list[str], tmp_path: Path
) -> None:
    template = (ROOT / "csrc" / "dove-config.cmake.in").read_text()
    config = template.replace("@PACKAGE_INIT@", "").replace("@DOVE_CUDA_ARCHS@", archs)
    assert "@" not in config
    (tmp_path / "dove-config.cmake").write_text(config)
    (tmp_path / "dove-targets.cmake").touch()
    # In place of CMake's own, which looks for packages and so wants a project.
    said = 'macro(find_dependency name)\n  message(STATUS "needs ${name}")\nendmacro()\n'
    (tmp_path / "CMakeFindDependencyMacro.cmake").write_text(said)
    out = cmake(f"-DCMAKE_MODULE_PATH={tmp_path}", "-P", tmp_path / "dove-config.cmake")
    assert [line.split()[-1] for line in out.splitlines() if " needs " in line] == needs
