"""Which commit is measured, also where the tree has travelled without its .git.

In a clone git knows it. `benchmarks/gpu/run.sh prepare` writes down what git says, with a digest of the
sources, for a machine that gets the files alone; there the digest tells whether they are still the same.
"""

from __future__ import annotations

import hashlib
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FILE = ROOT / "benchmarks" / "commit.txt"
CHANGED = "+changes"
_FOLDERS = ("csrc", "dove_ext", "python", "benchmarks")
_SUFFIXES = {".py", ".cpp", ".cu", ".cuh", ".h", ".in"}


def of_git(root: Path = ROOT) -> str | None:
    """The checked-out commit, with "+changes" if tracked files differ from it; None outside a clone."""
    if not (root / ".git").exists():  # git would look for one in the folders above
        return None
    try:
        head, changed = (
            subprocess.run(["git", *words], cwd=root, capture_output=True, text=True, check=True).stdout
            for words in (["rev-parse", "--short", "HEAD"], ["status", "--porcelain", "-uno"])
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return head.strip() + (CHANGED if changed.strip() else "")


def digest(root: Path = ROOT) -> str:
    """Of the sources that decide what is measured: a hexadecimal SHA-256."""
    found = hashlib.sha256()
    files = (p for name in _FOLDERS for p in (root / name).rglob("*") if p.suffix in _SUFFIXES)
    for path in sorted(files):
        found.update(f"{path.relative_to(root)}\0".encode() + path.read_bytes() + b"\0")
    return found.hexdigest()


def text(root: Path = ROOT) -> str | None:
    """What `prepare` writes down: commit and digest, one a line; None outside a clone."""
    commit = of_git(root)
    return None if commit is None else f"{commit}\n{digest(root)}\n"


def of_tree(root: Path = ROOT) -> str | None:
    """The commit by git, or else by what `prepare` wrote; None where neither is there.

    Sources that differ from those it was written for are marked with "+changes".
    """
    commit = of_git(root)
    file = root / FILE.relative_to(ROOT)
    if commit is not None or not file.exists():
        return commit
    commit, expected = file.read_text(encoding="utf-8").split()
    same = expected == digest(root) or commit.endswith(CHANGED)
    return commit if same else commit + CHANGED
