"""What texture could do for pictures of few tokens: how far ST-LPIPS falls for what it costs in PSNR.

    python -m benchmarks.texture PHOTO... [--counts 16 32] [--blocks 8 32] [--shares 0.15 0.25]

A decoder that invents what is missing cannot know its signs. The best that it could know is how much of
each frequency is missing where, so that is given away here: the difference from the original, in blocks, with
the signs of its cosine coefficients drawn anew, is added at a share of its size. The last row of each count
goes the largest share of the way to the original itself.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence

import torch
from torch import Tensor

import dove_ext
from dove_eval.shift_tolerant import st_lpips
from dove_ext.metrics import psnr

from .table import Table


def cosines(size: int) -> Tensor:
    """The orthonormal DCT-II of `size` values: [size, size]."""
    frequency, place = torch.arange(size)[:, None], torch.arange(size)[None]
    rows = torch.cos(math.pi * (2 * place + 1) * frequency / (2 * size)) * math.sqrt(2 / size)
    rows[0] /= math.sqrt(2)
    return rows


def shuffled(difference: Tensor, block: int) -> Tensor:
    """Each block's coefficients with signs of chance, the same in all colours: [B, 3, S, S] of these."""
    dct, side = cosines(block), difference.shape[-1]
    blocks = difference.unfold(2, block, block).unfold(3, block, block)
    coefficients = dct @ blocks @ dct.T
    signs = torch.randn_like(coefficients[:, :1]).sign()
    changed = dct.T @ (coefficients * signs) @ dct
    return changed.permute(0, 1, 2, 4, 3, 5).reshape(-1, 3, side, side)


@torch.no_grad()
def main(options: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("photos", nargs="+", help="picture files")
    parser.add_argument("--model", default="dove-tiny")
    parser.add_argument("--counts", nargs="+", type=int, default=[16, 32])
    parser.add_argument("--blocks", nargs="+", type=int, default=[8, 32])
    parser.add_argument("--shares", nargs="+", type=float, default=[0.15, 0.25])
    args = parser.parse_args(options)
    torch.manual_seed(0)
    model, judge = dove_ext.load_model(args.model), st_lpips("alex")
    rows: list[list[str]] = []
    pixels = dove_ext.prepare_images(args.photos, model.config.image_size)
    for count in args.counts:
        pictures = 2 * model.reconstruct((pixels + 1) / 2, num_tokens=count)[0].float() - 1
        missing, seen = pixels - pictures, judge(pictures, pixels).mean()
        changes = [("none", 0.0, missing)]
        changes += [
            (f"texture, {b} x {b}", q, shuffled(missing, b)) for b in args.blocks for q in args.shares
        ]
        changes += [("towards the original", max(args.shares), missing)]
        for name, share, change in changes:
            changed = (pictures + share * change).clamp(-1, 1)
            distance = judge(changed, pixels).mean()
            figures = [
                f"{psnr(changed, pixels, black=-1.0).mean():.2f}",
                f"{distance:.4f}",
                f"{distance / seen - 1:+.1%}",
            ]
            rows.append([str(count), name, f"{share:g}", *figures])
    heads = ["tokens", "change", "share", "PSNR (dB)", "ST-LPIPS (AlexNet)", "beside the model's"]
    print(Table(heads, rows).markdown())
    return 0


if __name__ == "__main__":
    sys.exit(main())
