"""What every GPU benchmark shares: device timing in turns, the measured ceilings, the facts of the machine.

A call is timed by replaying a CUDA graph that holds it once for each of several sets of inputs, so that
launch gaps stay out of the figure and the caches do not hold the inputs of the next call. A candidate that
cannot be captured is queued call by call between two events; its row says so.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from .. import timing

# Index of an input set -> result.
Call = Callable[[int], Any]

SETS = 4
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def require_gpu() -> None:
    """Leave with one sentence unless compiled kernels can run on a GPU here."""
    import dove_ext

    cuda = dove_ext.info()["backends"]["cuda"]
    if not cuda["available"]:
        sys.exit(f"benchmarks.gpu needs a GPU and CUDA kernels: {cuda['why']}")


def arguments(description: str, *, seconds: float = 1.0) -> argparse.ArgumentParser:
    """The options that every GPU benchmark takes: --json, --seconds, --quick."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--json", type=Path, metavar="PATH", help="also write the record to PATH")
    parser.add_argument("--seconds", type=float, default=seconds, help="per row (default %(default)s)")
    parser.add_argument("--quick", action="store_true", help="few rows: a check that everything runs")
    return parser


def sets_of(make: Callable[[int], Any], bytes_each: int) -> list[Any]:
    """Several sets of inputs, `make(seed)` each; one only if they are large (over 4 GB together)."""
    return [make(seed) for seed in range(SETS if SETS * bytes_each < 4e9 else 1)]


class _Timed:
    """A candidate ready to be timed: a graph of one call for each set, or the bare calls."""

    def __init__(self, call: Call, sets: int) -> None:
        self.call, self.sets = call, sets
        for index in range(sets):  # compilation, library handles, choice of kernels
            call(index)
            call(index)
        torch.cuda.synchronize()
        self.graph: torch.cuda.CUDAGraph | None = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(self.graph):
                for index in range(sets):
                    call(index)
        except Exception as error:  # whatever a peer does that a capture forbids
            torch.cuda.synchronize()
            print(f"  not captured, timed call by call: {str(error).splitlines()[0][:100]}")
            self.graph = None

    def seconds(self) -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        if self.graph is not None:
            self.graph.replay()
        else:
            for index in range(self.sets):
                self.call(index)
        end.record()
        end.synchronize()
        return 1e-3 * start.elapsed_time(end) / self.sets


def measure(
    candidates: Mapping[str, Call], *, sets: int, seconds: float, bytes_moved: float, flops: float, kind: str
) -> dict[str, Any]:
    """Time candidates in turns; the first is ours. One that fails is left out and named in "missing".

    Args:
        candidates: name -> call of an input-set index.
        sets: how many input sets there are.
        seconds: for all candidates together.
        bytes_moved: fewest bytes of device memory that one call must read and write.
        flops: fewest floating-point operations of one call.
        kind: "bf16", "fp16" or "fp32": whose measured matrix-product rate bounds them.

    Returns:
        dict: as `timing.compare`, and "floor_us", "of_floor" (our median over it), "captured", "missing".
    """
    timed: dict[str, _Timed] = {}
    missing: dict[str, str] = {}
    for name, call in candidates.items():
        try:
            timed[name] = _Timed(call, sets)
        except Exception as error:  # a peer that is not installed or does not take these shapes
            missing[name] = (
                f"{type(error).__name__}: {str(error).splitlines()[0][:160] if str(error) else ''}"
            )
            torch.cuda.synchronize()
    ours = next(iter(candidates))
    if ours in missing:
        raise RuntimeError(f"{ours} failed: {missing[ours]}")
    for candidate in timed.values():
        candidate.seconds()
    times: dict[str, list[float]] = {name: [] for name in timed}
    end = time.perf_counter() + seconds
    while len(times[ours]) < 5 or (time.perf_counter() < end and len(times[ours]) < 500):
        for name, candidate in timed.items():
            times[name].append(candidate.seconds())
    result = timing.compare(times, ours)
    limits = ceilings()
    floor_us = 1e6 * max(bytes_moved / limits["bytes_per_s"], flops / limits[f"{kind}_flops_per_s"])
    captured = [name for name, candidate in timed.items() if candidate.graph is not None]
    return {
        **result,
        "floor_us": floor_us,
        "of_floor": result["time_us"][ours]["median"] / floor_us if floor_us else None,
        "captured": captured,
        "missing": missing,
    }


_ceilings: dict[str, float] = {}


def ceilings() -> dict[str, float]:
    """Measured once a process: bytes a second of a large copy (both ways), FLOPs of a large product."""
    if not _ceilings:
        source = torch.randn(1 << 28, device="cuda")
        target = torch.empty_like(source)
        rate = _best(lambda _: target.copy_(source))
        _ceilings["bytes_per_s"] = 2 * source.numel() * source.element_size() / rate
        del source, target
        for name, dtype in DTYPES.items():
            side = 4096 if dtype == torch.float32 else 8192
            a, b = (torch.randn(side, side, device="cuda").to(dtype) for _ in range(2))
            _ceilings[f"{name}_flops_per_s"] = 2 * side**3 / _best(lambda _, a=a, b=b: a @ b)
    return _ceilings


def _best(call: Call) -> float:
    timed = _Timed(call, 1)
    return min(timed.seconds() for _ in range(20))


def facts() -> dict[str, Any]:
    """Device, driver and library versions, and the ceilings."""
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        driver = subprocess.run(query, capture_output=True, text=True, check=True).stdout.splitlines()[0]
    except (OSError, subprocess.CalledProcessError, IndexError):
        driver = "unknown"
    properties = torch.cuda.get_device_properties(0)
    return {
        "device": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "driver": driver,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "ceilings": dict(ceilings()),
    }


def print_row(label: str, result: Mapping[str, Any]) -> None:
    """As `timing.print_row`, with the floor."""
    timing.print_row(label, result)
    print(
        f"{'':38s} floor {1e-3 * result['floor_us']:.4f} ms, ours {result['of_floor']:.2f}x of it", flush=True
    )
    for name, why in result["missing"].items():
        print(f"{'':38s} {name}: {why}", flush=True)


def finish(options: argparse.Namespace, benchmark: str, rows: list[dict[str, Any]]) -> int:
    """Write the record if a path was given."""
    if options.json:
        timing.write_record(options.json, f"gpu.{benchmark}", rows, facts())
    return 0
