"""What is done to a training image each time it is drawn."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dove_ext.images.mosaics import Pixels
from dove_train.settings import TrainingError


@dataclass(frozen=True)
class Augmentation:
    """The mild random crop and greyscale jitter of A.2, and mirroring."""

    crop_scale: float = 0.85  # least side of the random square crop, as a share of the short side; in (0, 1]
    flip: float = 0.5  # probability of mirroring left and right
    grey: float = 0.1  # probability of losing all colour

    def __post_init__(self) -> None:
        if not 0 < self.crop_scale <= 1:
            raise TrainingError(f"crop_scale must be above 0 and at most 1, got {self.crop_scale}")
        for name in ("flip", "grey"):
            if not 0 <= getattr(self, name) <= 1:
                raise TrainingError(f"{name} must be between 0 and 1, got {getattr(self, name)}")

    def short_side(self, size: int) -> int:
        """The short side in pixels at which the smallest crop still has `size` pixels."""
        return math.ceil(size / self.crop_scale)

    def __call__(self, pixels: Pixels, size: int, random: np.random.Generator) -> Pixels:
        """Cut, scale, grey and mirror uint8 [H, W, 3] to uint8 [size, size, 3]."""
        height, width = pixels.shape[:2]
        side = max(1, round(min(height, width) * random.uniform(self.crop_scale, 1.0)))
        top, left = random.integers(height - side + 1), random.integers(width - side + 1)
        image = Image.fromarray(pixels[top : top + side, left : left + side])
        image = image.resize((size, size), Image.Resampling.BICUBIC)
        if random.random() < self.grey:
            image = image.convert("L").convert("RGB")
        out = np.asarray(image)
        return out[:, ::-1] if random.random() < self.flip else out

    def squashed(
        self, pixels: Pixels, boxes: Tensor, size: int, random: np.random.Generator, mirror: bool
    ) -> tuple[Pixels, Tensor]:
        """A mild random crop of any shape, resized to a square, that keeps more than half of every box.

        Args:
            pixels: uint8 [H, W, 3].
            boxes: float32 [n, 4], x0, y0, x1, y1 as fractions.
            size: side of the square in pixels.
            random: what chance draws from.
            mirror: whether the picture may be mirrored, as often as `flip` says.

        Returns:
            (Pixels, Tensor): uint8 [size, size, 3], and the boxes in it.
        """
        extent = np.array([pixels.shape[1], pixels.shape[0]])  # along x, y
        side = np.maximum(1, np.round(extent * random.uniform(self.crop_scale, 1.0, 2))).astype(int)
        first = random.integers(extent - side + 1)
        low, share = torch.from_numpy(first / extent).repeat(2), torch.from_numpy(side / extent).repeat(2)
        cut = ((boxes.double() - low) / share).clamp(0, 1)
        if not (area(cut) * share[0] * share[1] > 0.5 * area(boxes.double())).all():
            first, side, cut = np.zeros(2, int), extent, boxes
        part = pixels[first[1] : first[1] + side[1], first[0] : first[0] + side[0]]
        out = np.asarray(Image.fromarray(part).resize((size, size), Image.Resampling.BICUBIC))
        if not random.random() < self.flip or not mirror:
            return out, cut.float()
        mirrored = torch.stack([1 - cut[:, 2], cut[:, 1], 1 - cut[:, 0], cut[:, 3]], dim=1)
        return out[:, ::-1], mirrored.float()


def area(boxes: Tensor) -> Tensor:
    """Of boxes [n, 4]: [n]."""
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])


def shrink(image: Image.Image, side: int) -> Image.Image:
    """Scale down so that the short side has `side` pixels (bicubic, antialiased); a smaller one stays."""
    scale = side / min(image.size)
    if scale >= 1:
        return image
    size = (max(side, round(image.width * scale)), max(side, round(image.height * scale)))
    return image.resize(size, Image.Resampling.BICUBIC)
