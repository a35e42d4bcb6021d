"""The CPU kernels under a sanitizer: `python -m tests.sanitize address,undefined|thread [options of pytest]`.

Compiles csrc with g++'s -fsanitize into build/sanitize-*, then runs tests in a Python that takes this module
as dove_ext._C: by default the case table and the threads that share one model. What a sanitizer finds ends
the run.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import pybind11

ROOT = Path(__file__).resolve().parents[1]
LIBRARIES = {"address,undefined": ("libasan.so", "libubsan.so"), "thread": ("libtsan.so",)}
# Of torch's and Python's own memory at the end nothing is asked; what is not instrumented cannot be judged.
OPTIONS = {
    "ASAN_OPTIONS": "detect_leaks=0",
    "UBSAN_OPTIONS": "print_stacktrace=1",
    "TSAN_OPTIONS": "ignore_noninstrumented_modules=1 halt_on_error=1",
    "OMP_WAIT_POLICY": "PASSIVE",
}
TESTS = {
    "address,undefined": ("tests/ops/test_table.py", "tests/models/test_threads.py"),
    "thread": ("tests/models/test_threads.py", "tests/ops/test_table.py", "-k", "threads"),
}


def build(kind: str) -> Path:
    """The module, compiled with a sanitizer; what is there is only brought up to date."""
    folder = ROOT / "build" / f"sanitize-{kind.replace(',', '-')}"
    flags = f"-O1 -g -fno-omit-frame-pointer -fsanitize={kind}"
    flags += " -fno-sanitize-recover=undefined" if "undefined" in kind else ""
    configure = [
        "cmake", "-S", str(ROOT), "-B", str(folder), "-G", "Ninja", "-DCMAKE_BUILD_TYPE=None",
        "-DDOVE_PYTHON=ON", "-DDOVE_CUDA=OFF", f"-DDOVE_PORTABLE={'ON' if kind == 'thread' else 'OFF'}",
        f"-DCMAKE_CXX_FLAGS={flags}", f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={folder / 'module'}",
        f"-DPython_EXECUTABLE={sys.executable}", f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
    ]  # fmt: skip
    subprocess.run(configure, check=True, stdout=subprocess.DEVNULL)
    subprocess.run(["cmake", "--build", str(folder), "--target", "_C"], check=True)
    (module,) = (folder / "module").glob("_C*")
    return module


class _Instead:
    """Finds dove_ext._C elsewhere."""

    def __init__(self, path: str) -> None:
        self.path = path

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if name != "dove_ext._C":
            return None
        return importlib.util.spec_from_file_location(name, self.path)


def main() -> int:
    """The command; it starts itself once more, with the sanitizer's library loaded before all others."""
    kind, *rest = sys.argv[1:] or [""]
    if kind not in LIBRARIES:
        print(f"give one of {' or '.join(LIBRARIES)}", file=sys.stderr)
        return 2
    if (module := os.environ.pop("DOVE_SANITIZED", None)) is None:
        found = [
            subprocess.run([os.environ.get("CXX", "g++"), f"-print-file-name={name}"], check=True,
                           capture_output=True, text=True).stdout.strip()
            for name in (*LIBRARIES[kind], "libstdc++.so")
        ]  # fmt: skip
        preload = {"LD_PRELOAD": ":".join(found), "DOVE_SANITIZED": str(build(kind))}
        # The address space as it is laid out without chance: TSAN refuses others.
        command = ["setarch", "--addr-no-randomize", sys.executable, "-m", "tests.sanitize", kind, *rest]
        return subprocess.run(command, env={**os.environ, **OPTIONS, **preload}, check=False).returncode
    sys.meta_path.insert(0, _Instead(module))  # type: ignore[arg-type]
    import pytest

    from dove_ext import _C

    assert _C.__file__ == module
    os.environ.pop("LD_PRELOAD")  # not for what tests start
    # With -s: what is captured is lost when a sanitizer ends the process.
    return int(pytest.main(["-q", "-s", "-p", "no:cacheprovider", *(rest or TESTS[kind])]))


if __name__ == "__main__":
    sys.exit(main())
