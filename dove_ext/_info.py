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


def info() -> dict[str, Any]:
    """Describe the installation.

    Returns:
        dict: `{"version": str, "torch": str, "backends": {"cpu": {"available": bool, "isa": str, "threads":
        int}, "cuda": {"built": bool, "archs": list[str], "available": bool, "why": str}}}`. `why` is empty
        when the backend can run, otherwise one sentence with the reason and the remedy.
    """
    archs = [arch for arch in _C.cuda_archs().split(",") if arch]
    if not archs:
        why = _C.cuda_why_not()
    elif not torch.cuda.is_available():
        why = "torch sees no CUDA device; check the driver and that torch is a CUDA build"
    else:
        why = ""
    return {
        "version": __version__,
        "torch": torch.__version__,
        "backends": {
            "cpu": {"available": True, "isa": _C.cpu_isa(), "threads": torch.get_num_threads()},
            "cuda": {"built": bool(archs), "archs": archs, "available": bool(archs) and not why, "why": why},
        },
    }
