"""The units on one machine: in this process, or in several."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any

import torch

from dove_data.settings import DataError
from dove_data.shards import Row
from dove_data.units import Job, Maker, Unit
from dove_ext.devices import find_device
from dove_ext.images.index import ImageIndex
from dove_ext.memory import keep_freed_memory

_AHEAD = 2  # units for each worker that wait in the pool; a unit in it is a list of names
_ENDING = 30.0  # seconds in which a worker puts away what it has begun


def devices_of(name: str) -> list[str]:
    """What "cuda" means on this machine: every GPU; any other name is itself.

    Raises:
        DoveError: if it is unknown or not there.
    """
    device = find_device(name)
    if device.type == "cuda" and device.index is None:
        return [f"cuda:{i}" for i in range(torch.cuda.device_count())]
    return [device.type if device.type == "cpu" else name]


def default_workers(devices: list[str]) -> int:
    """One for each GPU, or for each core that this process may use."""
    if devices != ["cpu"]:
        return len(devices)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run(job: Job, units: Iterator[Unit], workers: int) -> Iterator[Row]:
    """The rows of all units, in any order.

    Raises:
        DataError: if a worker was killed; what is there stays.
        DoveError: that a worker raised.
    """
    devices = devices_of(job.settings.device)
    if workers == 1:
        maker = Maker(job, devices[0])
        for unit, part in units:
            yield maker(unit, part)
        return
    before = set(multiprocessing.active_children())
    context = multiprocessing.get_context("spawn")  # forks would wait for PyTorch's threads
    places = context.Queue()
    for worker in range(workers):
        places.put(devices[worker % len(devices)])
    pool = ProcessPoolExecutor(workers, context, _start, (job, places))
    waiting: set[Future[Row]] = set()
    try:
        for unit, part in units:
            waiting.add(pool.submit(_make, unit, part))
            if len(waiting) >= _AHEAD * workers:
                done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                for future in done:
                    yield future.result()
        while waiting:
            done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
            for future in done:
                yield future.result()
    except BrokenProcessPool as error:
        raise DataError(
            "a worker process has ended by itself: it was killed, or had too little memory (fewer --workers "
            "need less); the same command goes on from here"
        ) from error
    finally:
        pool.shutdown(wait=not waiting, cancel_futures=True)
        if waiting:
            _end(set(multiprocessing.active_children()) - before)


def _end(processes: set[Any]) -> None:
    for process in processes:
        process.terminate()
    for process in processes:
        process.join(_ENDING)
        if process.is_alive():
            process.kill()


_maker: Maker | None = None  # of a worker process


def _start(job: Job, places: Any) -> None:
    """Make a process a worker."""
    global _maker
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all; the first process ends the others
    # It ends them by SIGTERM, at once: an exception would be a result, and wait to be sent for a lock that a
    # killed worker may have held. Temporary files are the first process's to remove.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    keep_freed_memory()
    _maker = Maker(job, places.get())


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)  # a pool's workers would wait for the next task for ever


def _make(unit: int, part: ImageIndex) -> Row:
    assert _maker is not None
    return _maker(unit, part)
