"""What reduced precision and Winograd's sums cost on photographs: `python -m benchmarks.precision PHOTO...`.

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

WAYS = (("auto", torch.float32), ("torch", torch.bfloat16), ("auto", torch.bfloat16))
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
def encoder_error(pixels: Tensor, backend: str, dtype: torch.dtype) -> float:
    """Relative root mean square error of dove-base's latents."""
    torch.manual_seed(0)
    model = DoveModel(DoveConfig()).vqgan.eval()
    previous = dove_ext.set_backend("torch")
    try:
        exact = model.double().encode(pixels.double())
        dove_ext.set_backend(backend)
        ours = model.to(dtype).encode(pixels.to(dtype)).double()
    finally:
        dove_ext.set_backend(previous)
    return float(((ours - exact).pow(2).mean() / exact.pow(2).mean()).sqrt())


def gradients(pixels: Tensor, autocast: bool) -> dict[str, Tensor]:
    """Of log L_rec at 4, 9, 30 and 100 tokens, for the parts that render: one vector each."""
    model = DoveModel.from_pretrained("dove-tiny").train()
    lengths = torch.tensor([4, 9, 30, 100], dtype=torch.int32)[: len(pixels)]
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
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


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("photos", nargs="+", help="picture files")
    pixels = dove_ext.prepare_images(parser.parse_args(arguments).photos, 256)
    unit = (pixels + 1) / 2
    print("| dove-tiny | tokens | PSNR (dB) | a pixel differs by, at most / mean | lengths that differ |")
    print("|---|---|---|---|---|")
    for count in (64, 256, None):
        plain, lengths = reconstruct(unit, "torch", torch.float32, count)
        for backend, dtype in (("torch", torch.float32), *WAYS):
            pictures, own = reconstruct(unit, backend, dtype, count)
            apart = 255 * (pictures - plain).abs()
            print(
                f"| {NAMES[backend]} {str(dtype)[6:]} | {count or 'own'} | "
                f"{psnr(pictures * 2 - 1, pixels).mean():.3f} | {apart.max():.2g} / {apart.mean():.2g} | "
                f"{int((own != lengths).sum())} of {len(own)}, by {int((own - lengths).abs().max())} |"
            )
    print("\n| dove-base encoder, random weights | error |\n|---|---|")
    for backend, dtype in (("torch", torch.float32), *WAYS):
        print(f"| {NAMES[backend]} {str(dtype)[6:]} | {encoder_error(pixels[:2], backend, dtype):.1e} |")
    exact, kept = gradients(pixels[:4], False), gradients(pixels[:4], True)
    lowered = "dove_ext.models.{}.full_precision"
    with (
        patch(lowered.format("dove"), lambda function, *args: function(*args)),
        patch(lowered.format("vqgan"), lambda function, *args: function(*args)),
    ):
        everything = gradients(pixels[:4], True)
    print(
        "\n| gradient under autocast, cosine with float32 | all lowered | linear code and token decoder not |"
    )
    print("|---|---|---|")
    for name, gradient in exact.items():
        cosines = (
            F.cosine_similarity(gradient.double(), g[name].double(), dim=0) for g in (everything, kept)
        )
        print(f"| {name} | {' | '.join(f'{cosine:.3f}' for cosine in cosines)} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
