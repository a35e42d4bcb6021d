"""A training step: our ops against the same model in plain PyTorch.

    OMP_WAIT_POLICY=PASSIVE python -m benchmarks.ops.training [--preset dove-tiny] [--device D] [--json PATH]

Forward and backward of the whole model at sampled lengths in bfloat16 autocast, as `dove train` runs it. Both
sides share PyTorch's convolutions and matrix products and the settings of `dove_ext.memory` (the variable
above is the half of them that must be set before torch is loaded). Peak memory is that of two steps less
what was held before them: on a CPU in a process that does nothing else, on a GPU what the caching allocator
reports.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

import dove_ext
from dove_ext import DoveModel, config
from dove_ext.memory import keep_freed_memory
from dove_train.length_sampling import sample_lengths
from dove_train.stages import TokensPass

from .. import timing
from ..gpu import device as gpu
from ..record import Record, arguments

NAMES = {"dove_ext": "auto", "plain PyTorch": "torch"}


QUICK_SIZE = 64  # pixels of a side with --quick: a step on the shipped size takes seconds


def training_step(batch: int, preset: str, size: int, device: str) -> Callable[[str], None]:
    """A function that takes one step (without the optimiser, which is the same) with a backend."""
    torch.manual_seed(0)
    model = DoveModel(replace(config.preset(preset), image_size=size)).train().to(device)
    path = TokensPass(model)
    pixels = torch.rand(batch, 3, model.config.image_size, model.config.image_size) * 2 - 1
    pixels = pixels.to(device).contiguous(memory_format=torch.channels_last)
    lengths = sample_lengths(0, 0, batch, model.config.num_tokens, full_share=0.2).to(device)

    def step(backend: str) -> None:
        previous = dove_ext.set_backend(backend)
        try:
            with torch.autocast(pixels.device.type, torch.bfloat16):
                outputs = path(pixels, lengths)
                loss = (outputs.reconstruction.float() - pixels).square().mean()
            assert outputs.p_eos is not None
            (loss + 0.05 * outputs.p_eos.mean()).backward()
            model.zero_grad(set_to_none=True)
            if pixels.is_cuda:
                torch.cuda.synchronize()
        finally:
            dove_ext.set_backend(previous)

    return step


def peak_of_two_steps(batch: int, preset: str, size: int, backend: str) -> float:
    """In MiB, beyond what this process has before them; meant for a process that does nothing else."""
    step = training_step(batch, preset, size, "cpu")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    step(backend)
    step(backend)
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024


def peak_mib(batch: int, preset: str, size: int, backend: str) -> float:
    """`peak_of_two_steps` in a process of its own."""
    code = (
        f"from {__package__}.training import peak_of_two_steps\n"
        f"print(peak_of_two_steps({batch}, {preset!r}, {size}, {backend!r}))"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False, stdout=subprocess.PIPE, text=True)
    if done.returncode != 0:
        sys.exit(f"the process that measures memory failed, see above; preset {preset!r}, batch {batch}")
    return float(done.stdout)


def peak_on_a_gpu(step: Callable[[str], None], backend: str) -> float:
    """Of two steps in MiB, beyond the weights."""
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    step(backend)
    step(backend)
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def main(options: list[str] | None = None) -> int:
    parser = arguments(__doc__ or "", seconds=60.0)
    parser.add_argument(
        "--preset",
        nargs="+",
        default=["dove-tiny"],
        choices=config.PRESETS,
        metavar="PRESET",
        help=f"shapes of models, of {', '.join(config.PRESETS)} (default dove-tiny)",
    )
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    args = parser.parse_args(options)
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch sees no GPU here; use --device cpu")
    if args.threads:
        torch.set_num_threads(args.threads)
    if args.device == "cuda":
        gpu.require_gpu()
    record = Record("ops.training", args.json, options, gpu.facts() if args.device == "cuda" else None)
    for preset in args.preset:
        for batch in args.batches or ((1,) if args.quick else (8,)):
            row(record, args, preset, batch)
    return 0


def row(record: Record, args: argparse.Namespace, preset: str, batch: int) -> None:
    """A step of a model at a number of images."""
    size = QUICK_SIZE if args.quick else config.preset(preset).image_size
    memory: dict[str, float] = {}
    if args.device == "cpu":
        memory = {name: peak_mib(batch, preset, size, backend) for name, backend in NAMES.items()}
        keep_freed_memory()
    step = training_step(batch, preset, size, args.device)
    if args.device == "cuda":
        memory = {name: peak_on_a_gpu(step, backend) for name, backend in NAMES.items()}
    calls: dict[str, Callable[[], Any]] = {n: lambda b=b, s=step: s(b) for n, b in NAMES.items()}
    times = timing.interleave(calls, seconds=args.seconds, min_rounds=1 if args.quick else 3, warmup=1)
    result = timing.compare(times, ours="dove_ext")
    speed = {name: batch * 1e6 / row["median"] for name, row in result["time_us"].items()}
    record.add(
        f"training step, {preset}, batch {batch}",
        {
            "preset": preset,
            "batch": batch,
            "size": size,
            "device": args.device,
            "omp_wait_policy": os.environ.get("OMP_WAIT_POLICY", "default"),
        },
        {**result, "images_per_s": speed, "peak_mib": memory},
    )
    for name in NAMES:
        print(f"  {name}: {speed[name]:.2f} images/s, peak {memory[name]:.0f} MiB")


if __name__ == "__main__":
    sys.exit(main())
