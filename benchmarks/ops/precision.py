"""What reduced precision and Winograd's sums cost on photographs.

    python -m benchmarks.ops.precision PHOTO...

The shipped dove-tiny at 64 and 256 tokens and at its own lengths: PSNR, how far pictures are from those of
plain PyTorch in float32 (in levels of 255), and by how many tokens lengths move. dove-base's encoder, with
random weights: relative root mean square error against float64, on the first two photographs. And what
autocast does to the gradient of dove-tiny's reconstruction, on the first four.
"""

from __future__ import annotations

import argparse
import sys
from unittest.mock import patch

import torch
from torch import Tensor
from torch.nn import functional as F

import dove_ext
from dove_ext import DoveConfig, DoveModel
from dove_ext.metrics import psnr

from ..table import Table

WAYS = (("auto", torch.float32), ("torch", torch.bfloat16), ("auto", torch.bfloat16))
PLAIN = ("torch", torch.float32)
NAMES = {"auto": "dove_ext", "torch": "PyTorch"}


def reconstruct(pixels: Tensor, backend: str, dtype: torch.dtype, count: int | None) -> tuple[Tensor, Tensor]:
    """Pictures in [0, 1] and lengths."""
    previous = dove_ext.set_backend(backend)
    try:
        model = DoveModel.from_pretrained("dove-tiny", dtype=dtype)
        pictures, tokens = model.reconstruct(pixels, num_tokens=count, batch_size=8)
    finally:
        dove_ext.set_backend(previous)
    return pictures, tokens.lengths


@torch.no_grad()
def latents(pixels: Tensor, backend: str, dtype: torch.dtype) -> Tensor:
    """dove-base's encoder with random weights, float64 [B, P, C]."""
    torch.manual_seed(0)
    model = DoveModel(DoveConfig()).vqgan.eval()
    previous = dove_ext.set_backend(backend)
    try:
        return model.to(dtype).encode(pixels.to(dtype)).double()
    finally:
        dove_ext.set_backend(previous)


def gradients(pixels: Tensor, autocast: bool) -> dict[str, Tensor]:
    """Of log L_rec at 4, 9, 30 and 100 tokens, for the parts that render: one vector each."""
    model = DoveModel.from_pretrained("dove-tiny").train()
    lengths = torch.tensor([4, 9, 30, 100], dtype=torch.int32)[: len(pixels)]
    with torch.autocast(pixels.device.type, torch.bfloat16, enabled=autocast):
        error = (model(pixels, lengths)[0].float() - pixels).square().flatten(1).mean(1)
    error.log().sum().backward()
    parts = {
        "token decoder, first map": model.token_decoder.from_grid,
        "token decoder, stack": model.token_decoder.stack,
        "VQGAN decoder": model.vqgan.decoder,
    }
    found = {}
    for name, part in parts.items():
        assert part is not None
        found[name] = torch.cat([p.grad.flatten() for p in part.parameters() if p.grad is not None])
    return found


def photographs(pixels: Tensor, counts: tuple[int | None, ...]) -> Table:
    """PSNR, and how far pictures and lengths are from those of plain PyTorch in float32."""
    unit, rows = (pixels + 1) / 2, []
    for count in counts:
        plain, lengths = reconstruct(unit, "torch", torch.float32, count)
        for backend, dtype in (PLAIN, *WAYS):
            pictures, own = reconstruct(unit, backend, dtype, count)
            apart = 255 * (pictures - plain).abs()
            rows.append(
                [
                    f"{NAMES[backend]} {str(dtype)[6:]}",
                    str(count or "own"),
                    f"{psnr(pictures * 2 - 1, pixels, black=-1.0).mean():.3f}",
                    f"{apart.max():.2g} / {apart.mean():.2g}",
                    f"{int((own != lengths).sum())} of {len(own)}, by {int((own - lengths).abs().max())}",
                ]
            )
    heads = ["tokens", "PSNR (dB)", "a pixel differs by, at most / mean", "lengths that differ"]
    return Table(["dove-tiny", *heads], rows)


def encoder(pixels: Tensor) -> Table:
    """Relative root mean square error of dove-base's latents."""
    exact = latents(pixels, "torch", torch.float64)
    rows = []
    for backend, dtype in (PLAIN, *WAYS):
        error = ((latents(pixels, backend, dtype) - exact).pow(2).mean() / exact.pow(2).mean()).sqrt()
        rows.append([f"{NAMES[backend]} {str(dtype)[6:]}", f"{error:.1e}"])
    return Table(["dove-base encoder, random weights", "error"], rows)


def under_autocast(pixels: Tensor) -> Table:
    """Cosines of gradients with those of float32, with and without the parts that stay in float32."""
    exact, kept = gradients(pixels, False), gradients(pixels, True)
    lowered = "dove_ext.models.{}.full_precision"
    with (
        patch(lowered.format("dove"), lambda function, *args: function(*args)),
        patch(lowered.format("vqgan"), lambda function, *args: function(*args)),
    ):
        everything = gradients(pixels, True)
    rows = []
    for name, gradient in exact.items():
        cosines = (
            F.cosine_similarity(gradient.double(), g[name].double(), dim=0) for g in (everything, kept)
        )
        rows.append([name, *(f"{cosine:.3f}" for cosine in cosines)])
    heads = ["all lowered", "linear code and token decoder not"]
    return Table(["gradient under autocast, cosine with float32", *heads], rows)


def main(options: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("photos", nargs="+", help="picture files")
    parser.add_argument("--quick", action="store_true", help="few rows: a check that everything runs")
    args = parser.parse_args(options)
    pixels = dove_ext.prepare_images(args.photos, 256)
    tables = [photographs(pixels, (64,) if args.quick else (64, 256, None))]
    if not args.quick:
        tables += [encoder(pixels[:2]), under_autocast(pixels[:4])]
    print("\n\n".join(table.markdown() for table in tables))
    return 0


if __name__ == "__main__":
    sys.exit(main())
