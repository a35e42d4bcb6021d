"""What a compiled module asks of the process that loads it, as readelf (binutils) tells."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

# Of glibc and gcc, on every Linux that the wheel's tag names. CUDA's runtime is linked in, libcuda.so.1 is
# opened when a GPU is asked for; torch is spoken to in Python.
ALLOWED = re.compile(
    r"(libc|libm|libdl|librt|libpthread|libstdc\+\+|libgcc_s|ld-linux-x86-64|ld-linux-aarch64)\.so\.\d+"
)
# Mangled names in the namespaces at, c10 and torch, whatever precedes these, and torch's C functions.
_TORCH = re.compile(r"(N|St|K)(2at|3c10|5torch)|^(torch_|aoti_|c10_)")


def needed(module: Path) -> list[str]:
    """Libraries that the loader must find (DT_NEEDED), and paths that it is to look in (RPATH, RUNPATH)."""
    text = _readelf("--dynamic", module)
    paths = [f"{kind} {path}" for kind, path in re.findall(r"\((RPATH|RUNPATH)\).*\[(.*)\]", text)]
    return re.findall(r"\(NEEDED\).*\[(.*)\]", text) + paths


def undefined(module: Path) -> list[str]:
    """The symbols that other libraries must bring, mangled, without their versions."""
    rows = [row.split() for row in _readelf("--dyn-syms", module).splitlines()]
    return [row[7].partition("@")[0] for row in rows if len(row) > 7 and row[6] == "UND"]


def complaints(module: Path) -> list[str]:
    """Why a module has no place in a wheel that is to run beside any build of torch; empty if it has."""
    foreign = [name for name in needed(module) if not ALLOWED.fullmatch(name)]
    of_torch = [name for name in undefined(module) if _TORCH.search(name)]
    found = [f"{module.name} needs {', '.join(foreign)}"] if foreign else []
    if of_torch:
        found.append(f"{module.name} has {len(of_torch)} undefined symbols of torch, such as {of_torch[0]}")
    return found


def _readelf(option: str, module: Path) -> str:
    command = ["readelf", "--wide", option, str(module)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout
