"""What this installation is: version, backends, and for each missing backend why."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from dove_ext import _C


def _version() -> str:
    try:
        return version("dove-ext")
    except PackageNotFoundError:
        return "not installed"


__version__ = _version()


def serves(archs: list[str], capability: tuple[int, int]) -> bool:
    """Whether a build for `archs` has code, or PTX to make code from, for a GPU of this compute capability.

    Args:
        archs: as CMake names them: "80-real" is code, "80-virtual" PTX, "80" both; "90a" runs on 9.0 alone.
        capability: such as (9, 0).
    """
    for arch in archs:
        number, _, kind = arch.partition("-")
        exact = number.endswith("a")
        major, minor = divmod(int(number.removesuffix("a").removesuffix("f")), 10)
        if exact:
            found = capability == (major, minor)
        else:
            code = kind != "virtual" and capability[0] == major and capability[1] >= minor
            found = code or (kind != "real" and capability >= (major, minor))
        if found:
            return True
    return False


def _why_no_cuda(archs: list[str]) -> str:
    if not archs:
        return str(_C.cuda_why_not())
    if not torch.cuda.is_available():
        return "torch sees no CUDA device; check the driver and that torch is a CUDA build"
    capability = torch.cuda.get_device_capability()
    name = "{}.{}".format(*capability)
    if capability < (8, 0):
        return f"the kernels need compute capability 8.0, the GPU has {name}; its ops run as plain PyTorch"
    if not serves(archs, capability):
        return (
            f"the kernels were built for {', '.join(archs)}, the GPU has compute capability {name}; "
            f"reinstall with CMAKE_ARGS=-DDOVE_CUDA_ARCHITECTURES={name.replace('.', '')}"
        )
    return ""


def info() -> dict[str, Any]:
    """Describe the installation.

    Returns:
        dict: `{"version": str, "torch": str, "backends": {"cpu": {"available": bool, "isa": str, "threads":
        int}, "cuda": {"built": bool, "archs": list[str], "available": bool, "why": str}}}`. `why` is empty
        when the backend can run, otherwise one sentence with the reason and the remedy.
    """
    archs = [arch for arch in _C.cuda_archs().split(",") if arch]
    why = _why_no_cuda(archs)
    return {
        "version": __version__,
        "torch": torch.__version__,
        "backends": {
            "cpu": {"available": True, "isa": _C.cpu_isa(), "threads": torch.get_num_threads()},
            "cuda": {"built": bool(archs), "archs": archs, "available": bool(archs) and not why, "why": why},
        },
    }
