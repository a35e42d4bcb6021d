"""Tokens for the middle of a picture: 48 of them for the whole of it, and 48 for what a mask marks.

    python examples/relevance.py examples/photos -o out/relevance.jpg

prints PSNR inside the mask and the model's own lengths, without and with it, and writes a sheet: each
photograph, its reconstruction from 48 tokens, and that from 48 tokens with the mask.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from PIL import Image

import dove_ext
from dove_ext.metrics import psnr

TOKENS = 48
BOX = (slice(60, 180), slice(80, 200))  # rows and columns of the 256 x 256 pixels that the model sees


def main() -> None:
    """Encode twice, compare, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("photos", nargs="+", type=Path, help="pictures, or folders of .jpg files")
    parser.add_argument("-o", "--output", type=Path, required=True, help="picture file of the sheet")
    args = parser.parse_args()
    files = [f for p in args.photos for f in (sorted(p.glob("*.jpg")) if p.is_dir() else [p])]
    model = dove_ext.load_model("dove-tiny")
    pixels = (dove_ext.prepare_images(files, model.config.image_size) + 1) / 2
    mask = torch.zeros(pixels.shape[2:])
    mask[BOX] = 1
    weight = mask.expand(len(files), 1, -1, -1)

    sheet = [pixels]
    print(f"{'inside the mask':<24}{f'{TOKENS} tokens':>12}{'own length':>12}{'tokens':>8}")
    for name, relevance in (("whole picture", None), ("with the mask", mask)):
        images, _ = model.reconstruct(files, num_tokens=TOKENS, relevance=relevance)
        at_own, tokens = model.reconstruct(files, relevance=relevance)
        quality = [psnr(x, pixels, black=0, weight=weight).mean() for x in (images, at_own)]
        mean = tokens.lengths.float().mean()
        print(f"{name:<24}{quality[0]:>9.2f} dB{quality[1]:>9.2f} dB{mean:>8.1f}")
        sheet.append(images)
    rows = torch.cat([torch.cat(list(part), 1) for part in sheet], 2)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.fromarray((rows.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy())
    picture.save(args.output)


if __name__ == "__main__":
    main()
