"""A process that does one thing: the peak memory of one encode, times without the usual settings, or a group.

    python -m benchmarks.tokenizers.child '{"what": "memory", "system": ..., "way": ..., "batch": 8, ...}'

Peak memory on the CPU is the largest resident set during one call, less the resident set right before it. The
process runs malloc as it is, so that freed blocks go back to the system and do not hide what is in use at
once; a call on one image comes first, so that libraries are loaded and kernels chosen. Linux only: the mark
is reset through /proc/self/clear_refs. On a GPU it is what the caching allocator reports.
"""

from __future__ import annotations

import ctypes
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch

from dove_ext.memory import keep_freed_memory

from .. import timing
from . import build, systems
from .build import Call


def _status_mib(field: str) -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) / 1024
    raise OSError(f"/proc/self/status has no {field}")


def peak_mib(call: Call, device: torch.device) -> float:
    """Peak of one call in MiB, beyond what was held before it."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        return (torch.cuda.max_memory_allocated(device) - before) / 2**20
    if not sys.platform.startswith("linux"):
        raise OSError("peak memory on the CPU is read from Linux's /proc")
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    before = _status_mib("VmRSS")
    call()
    return _status_mib("VmHWM") - before


def _group(name: str, only: list[str], device: torch.device) -> list[dict[str, Any]]:
    from .measure import run_group

    if device.type == "cpu":
        keep_freed_memory()
    start = time.monotonic()

    def say(line: str) -> None:
        print(f"         {time.monotonic() - start:5.0f} s  {line}", file=sys.stderr, flush=True)

    group = next(group for group in systems.plan(quick=False, only=only) if group.name == name)
    return run_group(group, device, say)


def run(task: dict[str, Any]) -> dict[str, Any]:
    """The answer to one task."""
    device, batch = torch.device(task["device"]), task.get("batch", 0)
    build.WEIGHTS.update(task["weights"])
    torch.set_num_threads(task["threads"])
    if task["what"] == "memory":
        system = systems.find(task["system"], task["way"])
        system.build(system, 1, device)["encode"]()()
        return {"peak_mib": peak_mib(system.build(system, batch, device)["encode"](), device)}
    if task["what"] == "group":
        return {"rows": _group(task["group"], task["only"], device)}
    chosen = [systems.find(*names) for names in task["systems"]]
    calls = {str(i): s.build(s, batch, device)["encode"]() for i, s in enumerate(chosen)}
    times = timing.interleave(calls, seconds=0.0, min_rounds=3, warmup=1)
    return {"seconds": list(times.values())}


if __name__ == "__main__":
    print(json.dumps(run(json.loads(sys.argv[1]))))
