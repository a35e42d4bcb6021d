"""A training step: our ops against the same model in plain PyTorch.

    OMP_WAIT_POLICY=PASSIVE python -m benchmarks.ops.training [--preset dove-tiny] [--json PATH]

Forward and backward of the whole model at sampled lengths in bfloat16 autocast, as `dove train` runs it. Both
sides share PyTorch's convolutions and matrix products and the settings of `dove_ext.memory` (the variable
above is the half of them that must be set before torch is loaded). Peak memory is that of a process that does
nothing else, less what it had before the first step; on a GPU what the caching allocator reports.
"""

from __future__ import annotations

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


def peak_of_two_steps(batch: int, preset: str, size: int, device: str, backend: str) -> float:
    """In MiB, beyond what this process has before them; meant for a process that does nothing else."""
    step = training_step(batch, preset, size, device)
    if device.startswith("cuda"):
        before = torch.cuda.memory_allocated()
    else:
        before = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    step(backend)
    step(backend)
    if device.startswith("cuda"):
        after = torch.cuda.max_memory_allocated()
    else:
        after = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return (after - before) / 2**20


def peak_mib(batch: int, preset: str, size: int, device: str, backend: str) -> float:
    """`peak_of_two_steps` in a process of its own."""
    code = (
        f"from {__package__}.training import peak_of_two_steps\n"
        f"print(peak_of_two_steps({batch}, {preset!r}, {size}, {device!r}, {backend!r}))"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False, stdout=subprocess.PIPE, text=True)
    if done.returncode != 0:
        sys.exit(f"the process that measures memory failed, see above; preset {preset!r}, batch {batch}")
    return float(done.stdout)


def main(options: list[str] | None = None) -> int:
    parser = arguments(__doc__ or "", seconds=60.0)
    parser.add_argument(
        "--preset",
        default="dove-tiny",
        choices=config.PRESETS,
        help="the model's shape (default %(default)s)",
    )
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    args = parser.parse_args(options)
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch sees no GPU here; use --device cpu")
    if args.threads:
        torch.set_num_threads(args.threads)
    record = Record("ops.training", args.json, options)
    size = QUICK_SIZE if args.quick else config.preset(args.preset).image_size
    for batch in args.batches or ((1,) if args.quick else (8,)):
        memory = {n: peak_mib(batch, args.preset, size, args.device, backend) for n, backend in NAMES.items()}
        if args.device == "cpu":
            keep_freed_memory()
        step = training_step(batch, args.preset, size, args.device)
        calls: dict[str, Callable[[], Any]] = {n: lambda b=b, s=step: s(b) for n, b in NAMES.items()}
        rounds = 1 if args.quick else 3
        times = timing.interleave(calls, seconds=args.seconds, min_rounds=rounds, warmup=1)
        result = timing.compare(times, ours="dove_ext")
        speed = {name: batch * 1e6 / row["median"] for name, row in result["time_us"].items()}
        record.add(
            f"training step, {args.preset}, batch {batch}",
            {
                "preset": args.preset,
                "batch": batch,
                "size": size,
                "device": args.device,
                "omp_wait_policy": os.environ.get("OMP_WAIT_POLICY", "default"),
            },
            {**result, "images_per_s": speed, "peak_mib": memory},
        )
        for name in NAMES:
            print(f"  {name}: {speed[name]:.2f} images/s, peak {memory[name]:.0f} MiB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
