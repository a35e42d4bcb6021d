"""Training images: from folders or tar shards, held in memory, cropped and flipped as they are drawn."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from dove_ext.errors import ImageError
from dove_ext.image_io import IMAGE_SUFFIXES, pil_to_tensor
from dove_ext.images import prepare_images, read_image


def open_images(paths: list[Path]) -> Iterator[tuple[str, Image.Image]]:
    """(name, RGB image) of every image in folders (recursively), tar shards and single files, in order.

    Raises:
        ImageError: naming the path or member that does not exist or cannot be read.
    """
    for path in paths:
        if path.suffix == ".tar":
            yield from _tar_images(path)
        elif path.is_dir():
            for file in sorted(p for p in path.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES):
                yield str(file), _picture(read_image(file))
        else:
            yield str(path), _picture(read_image(path))


def _tar_images(path: Path) -> Iterator[tuple[str, Image.Image]]:
    try:
        with tarfile.open(path) as tar:
            for member in tar:
                stream = (
                    tar.extractfile(member) if Path(member.name).suffix.lower() in IMAGE_SUFFIXES else None
                )
                if stream is None:
                    continue
                name = f"{path}: {member.name}"
                try:
                    with Image.open(io.BytesIO(stream.read())) as picture:
                        yield name, _picture(pil_to_tensor(picture, repr(name)))
                except (UnidentifiedImageError, OSError, SyntaxError) as error:
                    raise ImageError(f"{name!r} is not a picture or is damaged; rebuild the shard") from error
    except FileNotFoundError as error:
        raise ImageError(
            f"{str(path)!r} does not exist; give image folders, tar shards or pictures"
        ) from error
    except tarfile.TarError as error:
        raise ImageError(f"{str(path)!r} is not a tar file or is damaged ({error})") from error


def _picture(pixels: Tensor) -> Image.Image:
    return Image.fromarray(pixels.permute(1, 2, 0).numpy())


def resize_short_side(image: Image.Image, side: int) -> Image.Image:
    """Scale so that the short side is `side` pixels (bicubic, antialiased)."""
    scale = side / min(image.size)
    size = (max(side, round(image.width * scale)), max(side, round(image.height * scale)))
    return image if size == image.size else image.resize(size, Image.Resampling.BICUBIC)


class TrainingImages:
    """Images in memory with a sampler whose whole state is (seed, position).

    Every epoch is a fresh permutation of all images; an image is cut to a random square of its short side's
    0.85 to 1 (the paper's mild random crop), scaled to `size` and flipped half of the time; one image in ten
    is made grey (A.2).
    """

    def __init__(self, paths: list[Path], size: int, seed: int) -> None:
        self.size, self.seed, self.position = size, seed, 0
        self.images = [
            np.asarray(resize_short_side(image, min(min(image.size), round(size * 1.15))))
            for _, image in open_images(paths)
        ]
        if not self.images:
            raise ImageError(
                f"there are no pictures in {', '.join(map(str, paths))}; give other training data"
            )

    def __len__(self) -> int:
        return len(self.images)

    def batch(self, count: int) -> Tensor:
        """The next `count` images: float32 [count, 3, size, size] in [-1, 1]."""
        rows = []
        for _ in range(count):
            epoch, index = divmod(self.position, len(self.images))
            order = np.random.default_rng((self.seed, epoch)).permutation(len(self.images))
            rows.append(
                self._augment(self.images[order[index]], np.random.default_rng((self.seed, 1, self.position)))
            )
            self.position += 1
        pixels = torch.from_numpy(np.stack(rows)).permute(0, 3, 1, 2)
        return pixels.float().div_(127.5).sub_(1).contiguous(memory_format=torch.channels_last)

    def _augment(self, pixels: np.ndarray, random: np.random.Generator) -> np.ndarray:
        height, width = pixels.shape[:2]
        side = round(min(height, width) * random.uniform(0.85, 1.0))
        top, left = random.integers(height - side + 1), random.integers(width - side + 1)
        image = Image.fromarray(pixels[top : top + side, left : left + side])
        image = image.resize((self.size, self.size), Image.Resampling.BICUBIC)
        if random.random() < 0.1:
            image = image.convert("L").convert("RGB")
        out = np.asarray(image)
        return out[:, ::-1] if random.random() < 0.5 else out


def held_out_images(paths: list[Path], size: int, limit: int) -> Tensor:
    """Validation images, evenly spread over the paths' order, centre-cropped.

    Returns:
        Tensor: float32 [N, 3, size, size] in [-1, 1], N <= limit.
    """
    images = [image for _, image in open_images(paths)]
    if not images:
        raise ImageError(f"there are no pictures in {', '.join(map(str, paths))}; give other held-out data")
    step = max(1, len(images) // limit)
    return prepare_images(images[::step][:limit], size)
