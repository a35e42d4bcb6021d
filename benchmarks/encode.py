"""Encode and decode of whole models against a VQGAN-256 as it is usually run.

    python -m benchmarks.encode [--batch 1 8] [--json PATH]

The peer is the f16 VQGAN's encoder in eager PyTorch, channels-first and float32, on the same images: 256
tokens for every image. dove-base has that same encoder inside; its weights are random, which costs the same
as trained ones at a fixed number of tokens. dove-tiny runs with its shipped weights, also at its own lengths.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from dove_ext import DoveConfig, DoveModel

from . import timing
from .peers.vqgan import VQGAN


def images(batch: int, size: int) -> Tensor:
    """Smooth random pictures: uint8 [batch, 3, size, size]."""
    coarse = torch.rand(batch, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    fine = torch.nn.functional.interpolate(coarse, size=(size, size), mode="bicubic").clamp(0, 1)
    return (fine * 255).byte()


def candidates(batch: int) -> dict[str, Callable[[], Any]]:
    """Name -> one encode of `batch` images."""
    pictures = images(batch, 256)
    config = DoveConfig()
    peer = VQGAN(config.vqgan.codebook_size).eval()
    pixels = pictures.float() / 127.5 - 1

    def eager_vqgan() -> Any:
        with torch.inference_mode():
            return peer.encode(pixels)

    calls: dict[str, Callable[[], Any]] = {"VQGAN-256 eager fp32": eager_vqgan}
    for dtype in (torch.float32, torch.bfloat16):
        short = str(dtype).removeprefix("torch.")
        base = DoveModel(config).to(dtype).eval()
        for count in (32, 256):
            calls[f"dove-base {short} {count} tokens"] = lambda m=base, n=count: m.encode(
                pictures, num_tokens=n
            )
        tiny = DoveModel.from_pretrained("dove-tiny", dtype=dtype)
        calls[f"dove-tiny {short} own length"] = lambda m=tiny: m.encode(pictures)
        calls[f"dove-tiny {short} 256 tokens"] = lambda m=tiny: m.encode(pictures, num_tokens=256)
    return calls


def main() -> None:
    """Measure and print; the peer runs once in every round."""
    parser = timing.arguments(__doc__ or "", seconds=30.0)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8], help="images at once")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    rows = []
    for batch in args.batch:
        times = timing.interleave(candidates(batch), seconds=args.seconds, min_rounds=3, warmup=1)
        peer = next(iter(times))
        for name in list(times)[1:]:
            result = timing.compare({peer: times[peer], name: times[name]}, ours=name)
            rows.append({"batch": batch, "name": name, **result})
            timing.print_row(f"encode, batch {batch}", result)
    if args.json:
        timing.write_record(args.json, "encode", rows)


if __name__ == "__main__":
    main()
