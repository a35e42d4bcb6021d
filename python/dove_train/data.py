"""Training images in endless random order: sample number p of a seed is the same wherever it is drawn.

The order is one number, the position: how many samples the run has drawn before, in all processes. From
(seed, position) alone follow the epoch, the image and its augmentation. So a run that goes on needs no state
of any sampler, worker or random generator, and neither the number of processes nor that of workers matters.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from dove_ext.errors import DoveError, ImageError
from dove_ext.images import drawn
from dove_ext.images.index import ImageIndex
from dove_ext.images.mosaics import Pixels
from dove_train.augment import Augmentation, shrink
from dove_train.settings import TrainingError

# So many unusable images in a row end a run: going through a million of them would look like a hang.
PATIENCE = 10_000


@dataclass
class Sample:
    """One augmented image."""

    pixels: Tensor  # uint8 [3, size, size]
    name: str  # its path, or "shard.tar: member"
    skipped: dict[str, str] = field(default_factory=dict)  # unreadable images it stands in for: name, reason
    query: str | None = None  # what is asked for; None: the whole image
    boxes: Tensor | None = None  # float32 [n, 4], where that is, in fractions; None where nobody asks
    more: list[tuple[str, Tensor]] = field(default_factory=list)  # further queries, and their boxes


@dataclass
class Batch:
    """Augmented images of consecutive positions."""

    pixels: Tensor  # uint8 [B, 3, size, size]
    names: list[str]
    skipped: dict[str, str]  # as in Sample, of all B
    queries: list[str | None]  # as in Sample
    boxes: list[Tensor] | None  # of each image; None where nobody asks
    more: list[list[tuple[str, Tensor]]] = field(default_factory=list)  # of each image, as in Sample


class TrainingImages(Dataset[Sample]):
    """Images in a fresh random order each epoch; item p is a function of (seed, p) alone.

    The index p counts samples without end: p // len(images) is the epoch. An image is first scaled down to
    `augmentation.short_side(size)`, then augmented.

    An image that cannot be read is replaced by the next one of the epoch's order, and named in the sample.
    So is, without being named, one whose short side is under `min_side`: sizes become known as images are
    read, since looking at a million headers beforehand would take longer than skipping the small ones.

    Args:
        paths: image folders, tar shards, pictures, see `ImageIndex`.
        size: side of the samples in pixels.
        seed: of the order and the augmentation; not negative.
        augmentation: what is done to each image.
        synsets: file that lists the classes to use, see `ImageIndex`.
        min_side: least short side of an image in pixels, as it is stored (0: all are used).
        drawn_share: share of the samples that are pictures of `drawn.TRAINED` instead.
        cache_bytes: memory that a process (its workers share it) may use to keep images that it has decoded
            and scaled down. A set that would not fit as a whole is not kept: hardly any would be met again.
            Samples do not depend on it.

    Raises:
        ImageError: if there are no images, see `ImageIndex`.
    """

    def __init__(
        self,
        paths: list[Path],
        size: int,
        seed: int,
        *,
        augmentation: Augmentation | None = None,
        synsets: Path | None = None,
        min_side: int = 0,
        drawn_share: float = 0.0,
        cache_bytes: int = 4 << 30,
    ) -> None:
        if seed < 0:
            raise TrainingError(f"seed must be at least 0, got {seed}")
        if drawn_share and size < drawn.SMALLEST:
            raise TrainingError(
                f"pictures of {size} pixels cannot be drawn, the smallest have {drawn.SMALLEST}; "
                "set drawn to 0"
            )
        self.index = ImageIndex(paths, synsets=synsets)
        self.size, self.seed, self.min_side, self.drawn_share = size, seed, min_side, drawn_share
        self.augmentation = augmentation or Augmentation()
        self.short_side = self.augmentation.short_side(size)
        usual = 3 * self.short_side**2 * 4 // 3  # bytes of an image of 4 to 3
        self.cache_bytes = cache_bytes if len(self.index) * usual <= cache_bytes else 0
        self._cache: dict[int, Pixels] = {}
        self._cached_bytes = 0
        self._order: tuple[int, npt.NDArray[np.int64]] | None = None

    def __getstate__(self) -> dict[str, Any]:
        # Workers that are not forked get a pickle; they shall read their images themselves.
        return {**self.__dict__, "_cache": {}, "_cached_bytes": 0, "_order": None}

    def __len__(self) -> int:
        """Images, which is the number of positions in an epoch."""
        return len(self.index)

    def __getitem__(self, position: int) -> Sample:
        """The sample at a position.

        Raises:
            TrainingError: if no image can be used, or 10,000 in a row cannot.
        """
        random = np.random.default_rng((self.seed, 7, position))
        if random.random() >= self.drawn_share:
            return self.photograph(position)
        kind, number = str(random.choice(drawn.TRAINED)), int(random.integers(1 << 31))
        return Sample(drawn.draw(kind, number, self.size), f"{kind}: {number}")

    def photograph(self, position: int) -> Sample:
        """The sample at a position if none were drawn; errors as for an item."""
        epoch, start = divmod(position, len(self))
        order, skipped, small = self._permutation(epoch), {}, 0
        tries = min(len(self), PATIENCE)
        for index in (int(order[(start + k) % len(self)]) for k in range(tries)):
            try:
                pixels = self._load(index)
            except ImageError as error:
                skipped[self.index.name(index)] = str(error)
                continue
            if pixels is None:
                small += 1
                continue
            random = np.random.default_rng((self.seed, 1, position))
            out = self.augmentation(pixels, self.size, random).transpose(2, 0, 1)
            return Sample(torch.from_numpy(out.copy()), self.index.name(index), skipped)
        which = f"none of the {tries} images" if tries == len(self) else f"none of {tries} images in a row"
        why = [f"{len(skipped)} cannot be read"] if skipped else []
        why += [f"{small} have a side under {self.min_side} pixels"] if small else []
        last = f" (the last: {list(skipped.values())[-1]})" if skipped else ""
        raise TrainingError(f"{which} can be used: {' and '.join(why)}; give other training data{last}")

    def _permutation(self, epoch: int) -> npt.NDArray[np.int64]:
        if self._order is None or self._order[0] != epoch:
            self._order = epoch, np.random.default_rng((self.seed, epoch)).permutation(len(self))
        return self._order[1]

    def _load(self, index: int) -> Pixels | None:
        """An image as uint8 [H, W, 3], its short side at most `self.short_side`; None if it is too small."""
        if index in self._cache:
            return self._cache[index]
        pixels = self.index.read(index)
        if min(pixels.shape[1:]) < self.min_side:
            return None
        # Also if it is not kept: what is in the cache depends on what was drawn before.
        small = np.asarray(shrink(Image.fromarray(pixels.permute(1, 2, 0).numpy()), self.short_side))
        worker = get_worker_info()
        room = self.cache_bytes // (worker.num_workers if worker else 1)
        if self._cached_bytes + small.nbytes <= room:
            self._cache[index] = small
            self._cached_bytes += small.nbytes
        return small


def batches(
    images: Dataset[Sample],
    start: int,
    batch_size: int,
    *,
    rank: int = 0,
    world_size: int = 1,
    workers: int = 0,
) -> Generator[Batch, None, None]:
    """Batches without end from a position on; `start` is all that a resumed run has to know.

    Batch k of process r holds the positions start + (k * world_size + r) * batch_size and the batch_size - 1
    after it. So the processes together draw what one process with their joint batch size would, and after k
    batches of each the position is start + k * world_size * batch_size.

    Args:
        images: what to draw from, by position: `TrainingImages` or `queries.QueryImages`.
        start: position of the first sample.
        batch_size: B, samples in a batch of one process.
        rank: r, which of the processes this is.
        world_size: number of processes.
        workers: processes that read images ahead, two batches each; 0: this one reads them when asked. They
            live as long as the generator and end when it is closed or dropped.

    Returns:
        Generator: of `Batch`; it raises TrainingError where `images` would.
    """
    loader: DataLoader[Batch | DoveError] = DataLoader(
        _Batches(images, batch_size),
        batch_size=None,  # an item is a batch already
        sampler=itertools.count(start + rank * batch_size, world_size * batch_size),  # type: ignore[arg-type]
        collate_fn=_as_it_is,
        num_workers=workers,
        generator=torch.Generator(),  # or it would draw a number from the global one
    )
    return _unwrap(loader)


def _unwrap(loader: DataLoader[Batch | DoveError]) -> Generator[Batch, None, None]:
    for batch in loader:
        if isinstance(batch, DoveError):
            raise batch
        yield batch


class _Batches(Dataset["Batch | DoveError"]):
    """Item p is the batch that begins at position p."""

    def __init__(self, images: Dataset[Sample], batch_size: int) -> None:
        self.images, self.batch_size = images, batch_size

    def __getitem__(self, first: int) -> Batch | DoveError:
        try:
            samples = [self.images[first + i] for i in range(self.batch_size)]
        except DoveError as error:
            return error  # raised in a worker, it would arrive as a page of traceback
        skipped = {name: reason for sample in samples for name, reason in sample.skipped.items()}
        pixels, names = torch.stack([s.pixels for s in samples]), [s.name for s in samples]
        boxes = [s.boxes for s in samples if s.boxes is not None]
        more = [s.more for s in samples]
        return Batch(pixels, names, skipped, [s.query for s in samples], boxes or None, more)


def _as_it_is(batch: Batch | DoveError) -> Batch | DoveError:
    return batch


class SkippedImages:
    """The different images, and queries, that a run could not use, up to a limit.

    Args:
        limit: how many are tolerated.
        on_new: called with one sentence for each of them, once.
    """

    def __init__(self, limit: int, on_new: Callable[[str], None] | None = None) -> None:
        self.limit, self._on_new = limit, on_new
        self.reasons: dict[str, str] = {}  # by name

    def __len__(self) -> int:
        return len(self.reasons)

    def add(self, skipped: dict[str, str]) -> None:
        """Count the images of `Batch.skipped` that are new.

        Raises:
            TrainingError: if there are more than the limit.
        """
        for name, reason in skipped.items():
            if name in self.reasons:
                continue
            self.reasons[name] = reason
            if self._on_new is not None:
                self._on_new(reason)
            if len(self) > self.limit:
                raise TrainingError(
                    f"{len(self)} images or queries cannot be used and max_unreadable is {self.limit}; "
                    f"repair or remove them, or allow more; the last: {reason}"
                )


def held_out_images(
    paths: list[Path], size: int, limit: int, synsets: Path | None = None
) -> tuple[Tensor, list[str]]:
    """Validation images, evenly spread over the paths' order, centre-cropped; only those are read.

    Args:
        paths: image folders, tar shards, pictures, see `ImageIndex`.
        size: side in pixels.
        limit: the most images.
        synsets: file that lists the classes to use, see `ImageIndex`.

    Returns:
        (Tensor, list): float32 [N, 3, size, size] in [-1, 1], N <= limit, and the names of these images.

    Raises:
        ImageError: if there are none, or one of them cannot be read: a measurement must not lose images.
    """
    index = ImageIndex(paths, synsets=synsets)
    chosen = index.spread(limit)
    return torch.cat([index.prepare(i, size) for i in chosen]), [index.name(i) for i in chosen]


def to_range(pixels: Tensor) -> Tensor:
    """uint8 pixels as float32 in [-1, 1]."""
    return pixels.float().div(127.5).sub(1)
