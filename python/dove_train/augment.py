"""What is done to a training image each time it is drawn."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from dove_train.settings import TrainingError

Pixels = npt.NDArray[np.uint8]


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


def shrink(image: Image.Image, side: int) -> Image.Image:
    """Scale down so that the short side has `side` pixels (bicubic, antialiased); a smaller one stays."""
    scale = side / min(image.size)
    if scale >= 1:
        return image
    size = (max(side, round(image.width * scale)), max(side, round(image.height * scale)))
    return image.resize(size, Image.Resampling.BICUBIC)
