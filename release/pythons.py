"""The interpreters that wheels are made for: found by version, or given by path."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

WANTED = ("3.10", "3.11", "3.12", "3.13", "3.14")
_ASK = (
    "import sys, sysconfig; from pathlib import Path; "
    "print('{}.{}'.format(*sys.version_info), sys.implementation.name, sys.executable, "
    "Path(sysconfig.get_path('include'), 'Python.h').is_file() "
    "and not sysconfig.get_config_var('Py_GIL_DISABLED'))"
)


@dataclass(frozen=True)
class Python:
    """A CPython with its headers."""

    version: str  # such as "3.11"
    path: Path


def look(executable: str | Path) -> Python | None:
    """What this executable is; None if it does not start, is no CPython with a GIL, or lacks its headers."""
    try:
        asked = subprocess.run([executable, "-I", "-c", _ASK], capture_output=True, text=True, check=False)
    except OSError:
        return None
    answer = asked.stdout.split()
    if len(answer) != 4 or answer[1] != "cpython" or answer[3] != "True":
        return None
    return Python(answer[0], Path(answer[2]))


def find(names: Sequence[str]) -> tuple[list[Python], list[str]]:
    """Find interpreters.

    Args:
        names: versions such as "3.11", looked for on PATH and among pyenv's, or paths of interpreters.

    Returns:
        tuple: what was found, one a version, in the order of versions; and the names of which nothing was.
    """
    found: dict[str, Python] = {}
    missing = []
    for name in names:
        pythons = (look(place) for place in _places(name))
        python = next((p for p in pythons if p and (p.version == name or "/" in name)), None)
        if python is None:
            missing.append(name)
        else:
            found.setdefault(python.version, python)
    return sorted(found.values(), key=lambda python: _numbers(python.version)), missing


def _places(name: str) -> Iterator[str | Path]:
    if "/" in name:
        yield name
        return
    if on_path := shutil.which(f"python{name}"):  # one of pyenv's shims may refuse to start
        yield on_path
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    of_version = pyenv.glob(f"versions/{name}.*/bin/python{name}")
    yield from sorted(of_version, key=lambda path: _numbers(path.parts[-3]), reverse=True)


def _numbers(version: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", version)]
