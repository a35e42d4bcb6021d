"""Sets of images: found, cut down, split into training and test, and read a few at a time.

Only names and places are held in memory; pixels are read when they are needed (npz files excepted, which can
only be read whole).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from dove_eval.layouts import TEST, TRAIN, DatasetError, Item, list_items
from dove_ext.errors import ImageError
from dove_ext.image_io import IMAGE_SUFFIXES
from dove_ext.images import Fit, prepare_images

TEST_SHARE = 5  # one image in this many is a test image where the data does not say


@dataclass(frozen=True)
class ImageSet:
    """Images in a fixed order.

    Attributes:
        items: the images.
        source: where they come from, for people.
        stamp: changes when a file behind the set does.
        failed: names and reasons of images that could not be read so far.
    """

    items: Sequence[Item]
    source: str
    stamp: str
    failed: dict[str, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.items)

    @property
    def digest(self) -> str:
        """Identifies the images and their order (hexadecimal)."""
        digest = hashlib.sha256(self.stamp.encode())
        for item in self.items:
            digest.update(f"\0{item.name}".encode())
        return digest.hexdigest()

    def limit(self, count: int | None) -> ImageSet:
        """At most `count` images, evenly spread over the order."""
        if count is None or count >= len(self):
            return self
        chosen = [self.items[i * len(self) // count] for i in range(count)]
        return replace(self, items=chosen)

    def limit_per_class(self, count: int | None) -> ImageSet:
        """At most `count` images of each class and split, the first ones."""
        if count is None:
            return self
        seen: dict[tuple[str | None, str | None], int] = {}
        chosen = []
        for item in self.items:
            kind = (item.label, item.split)
            seen[kind] = seen.get(kind, 0) + 1
            if seen[kind] <= count:
                chosen.append(item)
        return replace(self, items=chosen)

    def read(self, indices: Sequence[int], size: int, fit: Fit) -> tuple[list[int], Tensor | None]:
        """Read some images, past those that cannot be read (these are added to `failed`).

        Returns:
            (list[int], Tensor | None): the indices that could be read, and their pixels float32
            [n, 3, size, size] in [-1, 1]; None if there are none.
        """
        good, pixels = [], []
        for index in indices:
            item = self.items[index]
            try:
                pixels.append(prepare_images(item.open(), size, fit=fit))
                good.append(index)
            except ImageError as error:
                self.failed[item.name] = str(error)
        return good, torch.cat(pixels) if pixels else None

    @property
    def classes(self) -> list[str]:
        """Class names in order."""
        return sorted({item.label for item in self.items if item.label is not None}, key=_natural)

    def labelled(self) -> ImageSet:
        """The images that have a label, each with a split.

        Where no image says what it is for, every fifth one of a class is for the test.

        Raises:
            DatasetError: if there are fewer than two classes, or a split is empty.
        """
        items = [item for item in self.items if item.label is not None]
        if len({item.label for item in items}) < 2:
            raise DatasetError(
                f"{self.source} has images of {len({item.label for item in items})} classes; a classifier "
                "needs at least two: a folder for each class, labels in the shards' JSON, or `labels` in an "
                "npz"
            )
        if all(item.split is None for item in items):
            seen: dict[str | None, int] = {}
            for i, item in enumerate(items):
                seen[item.label] = seen.get(item.label, 0) + 1
                split = TEST if seen[item.label] % TEST_SHARE == 0 else TRAIN
                items[i] = replace(item, split=split)
        for split in (TRAIN, TEST):
            if not any(item.split == split for item in items):
                raise DatasetError(
                    f"{self.source} has no images for {split}; give more images, or the other part too"
                )
        return replace(self, items=items)


def find_images(paths: Sequence[str | Path]) -> ImageSet:
    """Everything that `paths` name, in order.

    Args:
        paths: image folders (all depths; a folder of images is their class), tar shards (`<key>.jpg` with an
            optional `<key>.json` that may give `label` and `split`), npz files (images uint8 [N, H, W, 3],
            with `labels` int and `classes` where known), folders of the CIFAR-10/100 binary version,
            `torchvision:NAME:ROOT`, and single picture files.

    Raises:
        DatasetError: naming the path and what was expected.
    """
    items: list[Item] = []
    stamps: list[str] = []
    for path in paths:
        found = list(list_items(path))
        if not found:
            raise DatasetError(
                f"{str(path)!r} holds no images; give folders, tar shards, npz or picture files"
            )
        items += found
        stamps.append(_stamp(path))
    names: dict[str, int] = {}
    for i, item in enumerate(items):
        names[item.name] = names.get(item.name, 0) + 1
        if names[item.name] > 1:
            items[i] = replace(item, name=f"{item.name} ({names[item.name]})")
    return ImageSet(items, ", ".join(str(path) for path in paths), "\n".join(stamps))


def with_test_set(train: ImageSet, test: ImageSet) -> ImageSet:
    """One set in which all of `train` is for training and all of `test` for the test."""
    items = [replace(item, split=TRAIN, name=f"train/{item.name}") for item in train.items]
    items += [replace(item, split=TEST, name=f"test/{item.name}") for item in test.items]
    return ImageSet(items, f"{train.source}, tested on {test.source}", f"{train.stamp}\n{test.stamp}")


def _stamp(path: str | Path) -> str:
    """Changes when the file, or an image in the folder, does (a report may be written into that folder)."""
    place = Path(str(path).split(":", 2)[-1])
    kinds = IMAGE_SUFFIXES | {".bin"}
    files = [p for p in sorted(place.rglob("*")) if p.suffix in kinds] if place.is_dir() else [place]
    digest = hashlib.sha256()
    for file in files:
        status = file.stat()
        digest.update(f"{file}\0{status.st_size}\0{status.st_mtime_ns}\0".encode())
    return digest.hexdigest()


def _natural(text: str) -> tuple[int, int, str]:
    """Numbers by value, before words."""
    return (0, int(text), text) if text.isdigit() else (1, 0, text)
