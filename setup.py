"""Builds the extension module dove_ext._C with CMake; all else about the package is in pyproject.toml."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pybind11
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent


class CMakeBuild(build_ext):
    """Configure, build and place one CMake module where setuptools expects the extension."""

    def build_extension(self, ext: Extension) -> None:
        """Run CMake for one extension."""
        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        # By DOVE_BUILD several Pythons, one after the other, share a build: the kernels are the same for all.
        shared = os.environ.get("DOVE_BUILD")
        build = Path(shared or Path(self.build_temp, ext.name)).resolve()
        build.mkdir(parents=True, exist_ok=True)
        configure = [
            "cmake",
            *(
                ["-U", "*Python_*", "-U", "PYTHON_*", "-U", "pybind11_*"] if shared else []
            ),  # of the one before
            "-S",
            str(ROOT),
            "-B",
            str(build),
            "-DCMAKE_BUILD_TYPE=Release",
            "-DDOVE_PYTHON=ON",
            f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={target.parent}",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
        ]
        # For example CMAKE_ARGS="-DDOVE_CUDA_ARCHITECTURES=86-real" or "-DDOVE_CUDA=OFF".
        configure += shlex.split(os.environ.get("CMAKE_ARGS", ""))
        if shutil.which("ninja"):
            configure += ["-G", "Ninja"]
        subprocess.run(configure, check=True)
        jobs = str(os.cpu_count() or 1)
        subprocess.run(["cmake", "--build", str(build), "--target", "_C", "--parallel", jobs], check=True)


class ClonePackages(build_py):
    """An editable install, which is one of a clone, finds `benchmarks` too; a wheel does not carry it."""

    def run(self) -> None:
        """Build the packages of pyproject.toml, or link those of the clone."""
        if self.editable_mode:
            self.distribution.packages.append("benchmarks")
        super().run()


setup(
    ext_modules=[Extension("dove_ext._C", sources=[])],
    cmdclass={"build_ext": CMakeBuild, "build_py": ClonePackages},
)
