"""`keep_freed_memory` in a process of its own: what it changes stays."""

from __future__ import annotations

import subprocess
import sys

import pytest

CODE = """
import sys
from dove_ext.memory import keep_freed_memory

def resident():
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmRSS")).split()[1])

if sys.argv[1] == "keep":
    keep_freed_memory()
before = resident()
block = bytearray(b"x") * (200 << 20)
del block
print(resident() - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only glibc can be told so")
def test_freed_pages_stay() -> None:
    left = {}
    for what in ("keep", "return"):
        run = subprocess.run([sys.executable, "-c", CODE, what], capture_output=True, text=True, check=True)
        left[what] = int(run.stdout)  # KiB
    assert left["keep"] > 190 << 10
    assert left["return"] < 20 << 10
