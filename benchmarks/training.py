"""A training step of dove-tiny: our ops against the same model in plain PyTorch.

    OMP_WAIT_POLICY=PASSIVE python -m benchmarks.training [--batch 8] [--json PATH]

Forward and backward of the whole model at sampled lengths in bfloat16 autocast, as `dove train` runs it. Both
sides share PyTorch's convolutions and matrix products and the settings of `dove_ext.memory` (the variable
above is the half of them that must be set before torch is loaded). Peak memory is that of a process that does
nothing else, less what it had before the first step.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import torch

import dove_ext
from dove_ext import DoveModel
from dove_ext.memory import keep_freed_memory
from dove_train.length_sampling import sample_lengths
from dove_train.stages import TokensPass

from . import timing

NAMES = {"dove_ext": "auto", "plain PyTorch": "torch"}


def training_step(batch: int, preset: str) -> Callable[[str], None]:
    """A function that takes one step (without the optimiser, which is the same) with a backend."""
    torch.manual_seed(0)
    model = DoveModel(preset).train()
    path = TokensPass(model)
    pixels = torch.rand(batch, 3, model.config.image_size, model.config.image_size) * 2 - 1
    pixels = pixels.contiguous(memory_format=torch.channels_last)
    lengths = sample_lengths(0, 0, batch, model.config.num_tokens, full_share=0.2)

    def step(backend: str) -> None:
        previous = dove_ext.set_backend(backend)
        try:
            with torch.autocast("cpu", torch.bfloat16):
                outputs = path(pixels, lengths)
                loss = (outputs.reconstruction.float() - pixels).square().mean()
            assert outputs.p_eos is not None
            (loss + 0.05 * outputs.p_eos.mean()).backward()
            model.zero_grad(set_to_none=True)
        finally:
            dove_ext.set_backend(previous)

    return step


def peak_mib(batch: int, preset: str, backend: str) -> float:
    """Peak resident memory of two steps in a process of their own, less what it had before them."""
    code = (
        f"import resource; from {__package__}.training import training_step\n"
        f"step = training_step({batch}, {preset!r})\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        f"step({backend!r}); step({backend!r})\n"
        "print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)"
    )
    output = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    return float(output)


def main() -> None:
    """Measure and print."""
    parser = timing.arguments(__doc__ or "", seconds=60.0)
    parser.add_argument("--batch", type=int, default=8, help="images a step")
    parser.add_argument("--preset", default="dove-tiny")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    memory = {name: peak_mib(args.batch, args.preset, backend) for name, backend in NAMES.items()}
    keep_freed_memory()
    step = training_step(args.batch, args.preset)
    calls: dict[str, Callable[[], Any]] = {n: lambda b=b: step(b) for n, b in NAMES.items()}
    times = timing.interleave(calls, seconds=args.seconds, min_rounds=3, warmup=1)
    result = timing.compare(times, ours="dove_ext")
    timing.print_row(f"training step, {args.preset}, batch {args.batch}", result)
    speed = {name: args.batch * 1e6 / row["median"] for name, row in result["time_us"].items()}
    for name in NAMES:
        print(f"  {name}: {speed[name]:.2f} images/s, peak {memory[name]:.0f} MiB")
    policy = os.environ.get("OMP_WAIT_POLICY", "default")
    row = {
        "preset": args.preset,
        "batch": args.batch,
        "omp_wait_policy": policy,
        **result,
        "images_per_s": speed,
        "peak_mib": memory,
    }
    if args.json:
        timing.write_record(args.json, "training", [row])


if __name__ == "__main__":
    main()
