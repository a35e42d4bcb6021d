"""Fork after use: what would wait for ever says so instead.

A thread that has led a team of GNU OpenMP's threads, as PyTorch's ops on several threads do, believes after a
fork that the team is still there, and waits for it. New threads of the child have teams of their own, and the
pool of our kernels begins anew. What a program did with PyTorch alone before it forked cannot be told.
"""

from __future__ import annotations

import os
import threading
from pathlib import Path

import torch


class _Thread(threading.local):
    led = 0  # threads of the largest team that this thread has led
    orphaned = False  # its team was left behind by a fork


_thread = _Thread()


def _after_fork() -> None:
    _thread.orphaned = _thread.orphaned or _thread.led > 1


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_after_fork)


def lead_threads() -> None:
    """To be called where work on PyTorch's threads begins; costs a tenth of a microsecond.

    Raises:
        RuntimeError: in a process forked after such work, if several threads are to take part again.
    """
    threads = torch.get_num_threads()
    if threads > 1 and _thread.orphaned and _waits_after_fork():
        raise RuntimeError(
            f"this process was forked from one that had used {_thread.led} threads, and its own work on "
            f"{threads} would wait for them for ever; start processes by 'spawn' or 'forkserver', or call "
            "torch.set_num_threads(1) in this one first"
        )
    _thread.led = max(_thread.led, threads)


def _waits_after_fork() -> bool:
    """Whether OpenMP is GNU's: the others make new teams in a child."""
    try:
        return "gomp" in Path("/proc/self/maps").read_text()
    except OSError:
        return True
