"""Sets of images: found, cut down, split into training and test, and read a few at a time.

Only names and places are held in memory; pixels are read when they are needed. Compressed npz files are the
exception: they can only be read whole.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from dove_eval.sources import TORCHVISION, DatasetError, Item, list_items
from dove_ext.errors import ImageError
from dove_ext.images import Fit, prepare_images
from dove_ext.images.labels import TEST, TRAIN

TEST_SHARE = 5  # one image in this many is a test image where the data does not say


@dataclass(frozen=True)
class ImageSet:
    """Images in a fixed order.

    Attributes:
        items: the images.
        source: where they come from, for people.
        stamp: changes when a file behind the set does.
        failed: names and reasons of images that could not be read so far.
        left_out: sentences about what was not taken besides what the rule of `dove_ext.images.find` names.
        files: that the images lie in.
    """

    items: Sequence[Item]
    source: str
    stamp: str
    failed: dict[str, str] = field(default_factory=dict)
    left_out: Sequence[str] = ()
    files: frozenset[Path] = frozenset()

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
        """At most `count` images of each class and split, the first ones (of a set that is `labelled`)."""
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
                # Of pixels that are no file, prepare_images does not know the name.
                self.failed[item.name] = str(error).replace("the tensor", repr(item.name), 1)
        return good, torch.cat(pixels) if pixels else None

    @property
    def classes(self) -> list[str]:
        """Class names in order."""
        return sorted({item.label for item in self.items if item.label is not None}, key=_natural)

    def labelled(self) -> ImageSet:
        """The images that have a label, each with a split.

        Where no image says what it is for, every fifth one of a class is for the test.

        Raises:
            DatasetError: if there are fewer than two classes, some images say what they are for and others do
                not or in an unknown word, a split is empty, or a class is in the test only.
        """
        items = [item for item in self.items if item.label is not None]
        if len({item.label for item in items}) < 2:
            raise DatasetError(
                f"{self.source} has images of {len({item.label for item in items})} classes; a classifier "
                "needs at least two: a folder for each class, labels in the shards' JSON, or `labels` in an "
                "npz"
            )
        strange = next((item for item in items if item.split not in (None, TRAIN, TEST)), None)
        if strange is not None:
            raise DatasetError(
                f"{strange.name!r} of {self.source} has the split {strange.split!r}; call it train or test"
            )
        silent = [item for item in items if item.split is None]
        if 0 < len(silent) < len(items):
            raise DatasetError(
                f"{len(silent)} of the {len(items)} images of {self.source} are neither for training nor for "
                f"the test, {silent[0].name!r} to begin with; say it for all of them or for none"
            )
        if silent:
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
        known = {item.label for item in items if item.split == TRAIN}
        unknown = [name for name in self.classes if name not in known]
        if unknown:
            more = f" and {len(unknown) - 3} more" if len(unknown) > 3 else ""
            raise DatasetError(
                f"no training image of {self.source} has the class {', '.join(map(repr, unknown[:3]))}{more} "
                "of its test images; name the classes alike in both parts"
            )
        return replace(self, items=items)


def find_images(paths: Sequence[str | Path]) -> ImageSet:
    """Everything that `paths` name, in order; a file that they name twice is taken once.

    Args:
        paths: image folders, tar shards and pictures, by the rule of `dove_ext.images.find` (a folder of
            images is their class; `<key>.json` beside a shard's `<key>.jpg` may give `label` and `split`);
            npz files (images uint8 [N, H, W, 3], with `labels` int and `classes` where known); folders with
            files of the CIFAR-10/100 binary version, of which nothing else is read; `torchvision:NAME:ROOT`;
            `drawn:KIND:COUNT` (`dove_ext.images.drawn`; KIND may be "trained" or "held-back").

    Raises:
        DatasetError: naming the path and what was expected.
    """
    distinct = list({Path(path).absolute(): path for path in paths}.values())
    found, files, left_out = list_items(distinct)
    items = [replace(item, name=escape(item.name)) for part in found for item in part]
    if not items:
        raise DatasetError(f"there are no images in {', '.join(map(str, distinct))}; give other paths")
    stamps = [_stamp(path, part) for path, part in zip(distinct, files, strict=True)]
    names: dict[str, int] = {}
    for i, item in enumerate(items):
        names[item.name] = names.get(item.name, 0) + 1
        if names[item.name] > 1:
            items[i] = replace(item, name=f"{item.name} ({names[item.name]})")
    source = ", ".join(escape(str(path)) for path in distinct)
    lie_in = {
        file.resolve()
        for path, part in zip(distinct, files, strict=True)
        for file in part
        if not str(path).startswith(TORCHVISION)  # whose root holds both of its parts
    }
    left_out = [escape(text) for text in left_out]
    return ImageSet(items, source, "\n".join(stamps), left_out=left_out, files=frozenset(lie_in))


def check_apart(train: ImageSet, test: ImageSet) -> None:
    """Refuse a test on what is trained on.

    Raises:
        DatasetError: naming a file that is in both sets.
    """
    both = sorted(train.files & test.files)
    if both:
        more = f" and {len(both) - 1} more files" if len(both) > 1 else ""
        raise DatasetError(
            f"{str(both[0])!r}{more} would be trained on and tested on; give --labelled and --labelled-test "
            "sets that have nothing in common"
        )


def with_test_set(train: ImageSet, test: ImageSet) -> ImageSet:
    """One set in which all of `train` is for training and all of `test` for the test."""
    items = [replace(item, split=TRAIN, name=f"train/{item.name}") for item in train.items]
    items += [replace(item, split=TEST, name=f"test/{item.name}") for item in test.items]
    source, stamp = f"{train.source}, tested on {test.source}", f"{train.stamp}\n{test.stamp}"
    return ImageSet(items, source, stamp, left_out=[*train.left_out, *test.left_out])


def _stamp(path: str | Path, files: Sequence[Path]) -> str:
    """Changes when one of the files does."""
    digest = hashlib.sha256()
    if str(path).startswith(TORCHVISION):  # one root may hold several sets, which name their images alike
        digest.update(os.fsencode(path))
    for file in files:
        try:
            status = file.stat()
            state = f"{status.st_size}\0{status.st_mtime_ns}"
        except OSError:  # a link that leads nowhere: reading the image will say so
            state = "none"
        digest.update(os.fsencode(file) + f"\0{state}\0".encode())
    return digest.hexdigest()


def escape(text: str) -> str:
    """Old file names may hold bytes that are no UTF-8, and a report cannot: they become escapes."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _natural(text: str) -> tuple[int, int, str]:
    """Numbers by value, before words."""
    return (0, int(text), text) if text.isdecimal() else (1, 0, text)
