"""What every GPU benchmark shares: options, timing in turns, compiled peers, measured ceilings, the machine.

A call is timed by replaying a CUDA graph that holds it once for each of several sets of inputs, so that
launch gaps stay out of the figure and the caches do not hold the inputs of the next call. A candidate that
cannot be captured is queued call by call between two events; its row says so.

With --dry-run everything runs on the CPU, once or twice and in the smallest sizes, so that no line of a
benchmark is met for the first time on a GPU.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch._dynamo.utils import counters

from dove_ext import DoveConfig, StackConfig, VQGANConfig

from .. import record, timing

# Index of an input set -> result.
Call = Callable[[int], Any]

SETS = 4
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


name = "cuda"
"""Where tensors are made; `begin` sets it."""


def require_gpu() -> None:
    """Leave with one sentence unless compiled kernels can run on a GPU here."""
    import dove_ext

    cuda = dove_ext.info()["backends"]["cuda"]
    if not cuda["available"]:
        sys.exit(f"benchmarks.gpu needs a GPU and CUDA kernels: {cuda['why']}")


def arguments(description: str) -> argparse.ArgumentParser:
    """The options that every GPU benchmark takes."""
    parser = record.arguments(description, seconds=1.0, threads=False)
    parser.add_argument(
        "--dry-run", action="store_true", help="on the CPU, few and small rows; figures mean nothing"
    )
    return parser


def begin(options: argparse.Namespace, benchmark: str, given: list[str] | None) -> record.Record:
    """Choose the device and open the record.

    Args:
        options: parsed from `arguments`.
        benchmark: name of the module below `benchmarks.gpu`.
        given: the command line, None for the process's.

    Raises:
        SystemExit: if there is no GPU that the kernels can run on.
    """
    global name
    name = "cpu" if options.dry_run else "cuda"
    options.quick |= options.dry_run
    if options.dry_run:
        options.seconds = 0.0
    else:
        require_gpu()
    return record.Record(f"gpu.{benchmark}", options.json, given, facts())


def config() -> DoveConfig:
    """dove-base's shape; in a dry run one that is made and run in no time."""
    if name == "cuda":
        return DoveConfig()
    vqgan = VQGANConfig(channels=32, channel_multipliers=(1, 2), encoder_blocks=1, decoder_blocks=1,
                        latent_channels=32, codebook_size=0)  # fmt: skip
    stack = StackConfig(hidden=64, layers=2, heads=2, mlp=128)
    return DoveConfig(image_size=16, vqgan=vqgan, generator=stack, token_decoder=stack, vocab_size=300)


def batches(options: argparse.Namespace, *usual: int) -> tuple[int, ...]:
    """Numbers of images: those asked for, else few, else the usual."""
    few = (1,) if options.dry_run else (8,) if options.quick else usual
    return options.batches or few


def synchronize() -> None:
    """Wait for the device."""
    if name == "cuda":
        torch.cuda.synchronize()


_graphs_before = 0


def new_row() -> None:
    """Forget what torch.compile has compiled.

    A function is compiled anew for each shape, eight times at most; from then on dynamo would run it eagerly
    without a word.
    """
    global _graphs_before
    torch._dynamo.reset()
    _graphs_before = counters["stats"]["unique_graphs"]


def compiled_graphs() -> int:
    """How many graphs torch.compile has made since `new_row`."""
    return int(counters["stats"]["unique_graphs"] - _graphs_before)


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` under torch.compile, for the very shapes it is given; what it cannot compile is an error."""
    backend = "inductor" if name == "cuda" else "eager"
    return torch.compile(function, dynamic=False, fullgraph=True, backend=backend)


def sets_of(make: Callable[[int], Any], bytes_each: int) -> list[Any]:
    """Several sets of inputs, `make(seed)` each; one only if they are large (over 4 GB together)."""
    return [make(seed) for seed in range(SETS if SETS * bytes_each < 4e9 else 1)]


class _Timed:
    """A candidate ready to be timed: a graph of one call for each set, or the bare calls."""

    def __init__(self, call: Call, sets: int) -> None:
        self.call, self.sets = call, sets
        self.graph: torch.cuda.CUDAGraph | None = None
        for index in range(sets):  # compilation, library handles, choice of kernels
            call(index)
            call(index)
        synchronize()
        if name != "cuda":
            return
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph):
                for index in range(sets):
                    call(index)
            self.graph = graph
        except Exception as error:  # whatever a peer does that a capture forbids
            torch.cuda.synchronize()
            print(f"  not captured, timed call by call: {str(error).splitlines()[0][:100]}")

    def _run(self) -> None:
        if self.graph is not None:
            self.graph.replay()
            return
        for index in range(self.sets):
            self.call(index)

    def seconds(self) -> float:
        """Of one call."""
        if name != "cuda":
            begun = time.perf_counter()
            self._run()
            return (time.perf_counter() - begun) / self.sets
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        self._run()
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
        dict: as `timing.compare`, and "floor_us", "of_floor" (our median over it), "captured" (who ran as a
        CUDA graph), "compiled" (how many graphs torch.compile has made since `new_row`) and "missing".
    """
    timed: dict[str, _Timed] = {}
    missing: dict[str, str] = {}
    for who, call in candidates.items():
        try:
            timed[who] = _Timed(call, sets)
        except Exception as error:  # a peer that is not installed or does not take these shapes
            missing[who] = f"{type(error).__name__}: {str(error).splitlines()[0][:160] if str(error) else ''}"
            synchronize()
    ours = next(iter(candidates))
    if ours in missing:
        raise RuntimeError(f"{ours} failed: {missing[ours]}")
    for candidate in timed.values():
        candidate.seconds()
    times: dict[str, list[float]] = {who: [] for who in timed}
    end = time.perf_counter() + seconds
    least = 5 if name == "cuda" else 1
    while len(times[ours]) < least or (time.perf_counter() < end and len(times[ours]) < 500):
        for who, candidate in timed.items():
            times[who].append(candidate.seconds())
    result = timing.compare(times, ours)
    limits = ceilings()
    floor_us = 1e6 * max(bytes_moved / limits["bytes_per_s"], flops / limits[f"{kind}_flops_per_s"])
    captured = [who for who, candidate in timed.items() if candidate.graph is not None]
    return {
        **result,
        "floor_us": floor_us,
        "of_floor": result["time_us"][ours]["median"] / floor_us if floor_us else None,
        "captured": captured,
        "compiled": compiled_graphs(),
        "missing": missing,
    }


_ceilings: dict[str, dict[str, float]] = {}


def ceilings() -> dict[str, float]:
    """Measured once a process: bytes a second of a large copy (both ways), FLOPs of a large product."""
    if name not in _ceilings:
        small = name != "cuda"
        source = torch.randn(1 << (16 if small else 28), device=name)
        target = torch.empty_like(source)
        rate = _best(lambda _: target.copy_(source))
        found = {"bytes_per_s": 2 * source.numel() * source.element_size() / rate}
        del source, target
        for kind, dtype in DTYPES.items():
            side = 64 if small else 4096 if dtype == torch.float32 else 8192
            a, b = (torch.randn(side, side, device=name).to(dtype) for _ in range(2))
            found[f"{kind}_flops_per_s"] = 2 * side**3 / _best(lambda _, a=a, b=b: a @ b)
        _ceilings[name] = found
    return _ceilings[name]


def _best(call: Call) -> float:
    timed = _Timed(call, 1)
    return min(timed.seconds() for _ in range(20))


def facts() -> dict[str, Any]:
    """Device, driver and library versions, and the ceilings."""
    versions = {"cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version()}
    if name != "cuda":
        return {"device": "none, a dry run", "driver": "none", **versions, "ceilings": dict(ceilings())}
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
        **versions,
        "ceilings": dict(ceilings()),
    }
