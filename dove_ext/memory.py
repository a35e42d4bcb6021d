"""What makes a process on a CPU faster: memory that it keeps, and threads that do not spin.

Both change the whole process, so only programs call them; the library never does on import.
"""

from __future__ import annotations

import ctypes
import os
import sys
from contextlib import suppress

# Of glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4


def keep_freed_memory() -> None:
    """Let malloc keep large blocks that are freed instead of returning them to the system.

    On the CPU each step or batch allocates the same gigabytes of activations again. Fresh pages cost a page
    fault for each 4 KiB and made a training step of dove-tiny about three times slower than pages that the
    process already has. Only glibc can be told so; elsewhere nothing happens.
    """
    _mallopt({_M_MMAP_MAX: 0, _M_TRIM_THRESHOLD: -1, _M_TOP_PAD: 256 << 20})


def _mallopt(options: dict[int, int]) -> None:
    if not sys.platform.startswith("linux"):
        return
    with suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        for option, value in options.items():
            mallopt(option, value)


def let_idle_threads_sleep() -> None:
    """Have OpenMP's threads sleep between PyTorch's ops instead of spinning; call it before torch is loaded.

    A spinning thread occupies the core that our kernels' own thread needs for some milliseconds after each of
    PyTorch's ops. On two cores a step of dove-tiny was 1.4 times faster with sleeping ones. A policy that the
    user has set stays.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
