"""How datasets lie on disk: each reader lists the images, with class and split where the layout has them."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from dove_ext.errors import DoveError, ImageError
from dove_ext.image_io import IMAGE_SUFFIXES, pil_to_tensor
from dove_ext.images import ImageLike

TRAIN, TEST = "train", "test"
_SPLITS = {"train": TRAIN, "training": TRAIN, "test": TEST, "val": TEST, "valid": TEST, "validation": TEST}


class DatasetError(DoveError, ValueError):
    """Data that cannot be found, or that lacks what a measurement needs."""


@dataclass(frozen=True)
class Item:
    """One image.

    Attributes:
        name: unique within its set; what a report calls it.
        open: reads it; anything `prepare_images` takes as one image.
        label: class name.
        split: "train" or "test".
    """

    name: str
    open: Callable[[], ImageLike]
    label: str | None = None
    split: str | None = None


def list_items(path: str | Path) -> Iterator[Item]:
    """The images of one path in order; for what a path may be see `dove_eval.datasets.find_images`.

    Raises:
        DatasetError: naming the path and what was expected.
    """
    if str(path).startswith("torchvision:"):
        return _torchvision(str(path))
    path = Path(path)
    if not path.exists():
        raise DatasetError(f"{str(path)!r} does not exist; give image folders, tar shards, npz or pictures")
    if path.is_dir():
        binary = sorted(path.rglob("*.bin"))
        return _cifar(path, binary) if binary else _folder(path)
    if path.suffix == ".tar":
        return _tar(path)
    if path.suffix == ".npz":
        return _npz(path)
    return iter([Item(path.name, lambda: path)])


def _folder(root: Path) -> Iterator[Item]:
    files = sorted(p for p in root.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES)
    files = [p for p in files if not p.name.startswith(".")]
    for file in files:
        parts = file.relative_to(root).parts
        # train/cat/1.jpg, cat/1.jpg, cat/train/1.jpg: the first folder that names no split is the class.
        split = next((_SPLITS[p.lower()] for p in parts[:-1] if p.lower() in _SPLITS), None)
        label = next((p for p in parts[:-1] if p.lower() not in _SPLITS), None)
        yield Item("/".join(parts), partial(Path, file), label, split)


def _tar(path: Path) -> Iterator[Item]:
    """Index a shard; members are read later by their place in the file."""
    found: dict[str, tuple[str, int, int]] = {}
    notes: dict[str, dict[str, Any]] = {}
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                key, _, suffix = member.name.rpartition(".")
                if f".{suffix.lower()}" in IMAGE_SUFFIXES:
                    found[key] = (member.name, member.offset_data, member.size)
                elif suffix == "json" and (stream := tar.extractfile(member)) is not None:
                    notes[key] = json.loads(stream.read())
    except (tarfile.TarError, json.JSONDecodeError, UnicodeDecodeError, OSError) as error:
        raise DatasetError(
            f"{str(path)!r} is not an uncompressed tar shard or is damaged ({error})"
        ) from error
    for key, (name, offset, size) in found.items():
        note = notes.get(key, {})
        label = note.get("label")
        split = _SPLITS.get(str(note.get("split")).lower())
        read = partial(_read_member, path, name, offset, size)
        yield Item(name, read, None if label is None else str(label), split)


def _read_member(path: Path, name: str, offset: int, size: int) -> Tensor:
    try:
        with path.open("rb") as file:
            file.seek(offset)
            data = file.read(size)
        with Image.open(io.BytesIO(data)) as picture:
            return pil_to_tensor(picture, repr(f"{path}: {name}"))
    except (UnidentifiedImageError, OSError, SyntaxError) as error:
        raise ImageError(f"{name!r} in {str(path)!r} is not a picture or is damaged ({error})") from error


def _npz(path: Path) -> Iterator[Item]:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            content = {name: arrays[name] for name in arrays.files}
    except (OSError, ValueError, EOFError) as error:
        raise DatasetError(f"{str(path)!r} is not an npz file or is damaged ({error})") from error
    images, labels = content.get("images"), content.get("labels")
    if images is None or images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3:
        raise DatasetError(
            f"{str(path)!r} must hold `images` uint8 [N, H, W, 3]; it holds {_shapes(content)}"
        )
    if labels is not None and (labels.shape != images.shape[:1] or labels.dtype.kind not in "iu"):
        raise DatasetError(
            f"{str(path)!r}: `labels` must be integers [{len(images)}], got {_shapes(content)}"
        )
    classes = content.get("classes")
    for i in range(len(images)):
        label = None if labels is None else int(labels[i])
        name = None if label is None else str(classes[label]) if classes is not None else str(label)
        yield Item(f"{path.stem}-{i:06d}", partial(images.__getitem__, i), name)


def _shapes(arrays: dict[str, np.ndarray]) -> str:
    return ", ".join(f"{name} {a.dtype} {list(a.shape)}" for name, a in arrays.items()) or "nothing"


def _cifar(root: Path, files: list[Path]) -> Iterator[Item]:
    """The binary version: label bytes (CIFAR-100: coarse and fine), then 3 x 32 x 32 bytes, red first."""
    for file in files:
        fine = file.stem in ("train", "test")  # CIFAR-100
        head = 2 if fine else 1
        if file.stat().st_size % (head + 3072) or not (fine or "batch" in file.stem):
            raise DatasetError(
                f"{str(file)!r} is not a file of CIFAR's binary version (data_batch_1.bin, train.bin ...)"
            )
        rows = np.memmap(file, np.uint8, "r").reshape(-1, head + 3072)
        listing = next(
            (n for name in ("fine_label_names.txt", "batches.meta.txt") for n in root.rglob(name)), None
        )
        classes = [] if listing is None else listing.read_text(encoding="utf-8").split()
        split = TEST if file.stem.startswith("test") else TRAIN
        labels = rows[:, head - 1].tolist()
        for i, label in enumerate(labels):
            name = classes[label] if label < len(classes) else str(label)
            yield Item(f"{file.stem}-{i:05d}", partial(_cifar_image, rows, i, head), name, split)


def _cifar_image(rows: np.ndarray, index: int, head: int) -> Tensor:
    return torch.from_numpy(rows[index, head:].reshape(3, 32, 32).copy())


def _torchvision(path: str) -> Iterator[Item]:
    """`torchvision:NAME:ROOT`, never downloaded: torchvision's readers of what lies in ROOT."""
    parts = path.split(":", 2)
    try:
        from torchvision import datasets
    except ImportError as error:
        raise DatasetError(f"{path!r} needs torchvision; pip install torchvision") from error
    if len(parts) != 3 or not hasattr(datasets, parts[1]):
        raise DatasetError(f"{path!r} must read torchvision:NAME:ROOT, such as torchvision:STL10:data/")
    kind, root = getattr(datasets, parts[1]), parts[2]
    for split in (TRAIN, TEST):
        data = None
        for arguments in ({"train": split == TRAIN}, {"split": split}):
            try:
                data = kind(root, **arguments)
                break
            except TypeError:  # this class spells its split otherwise
                continue
            except (RuntimeError, OSError, ValueError) as error:
                raise DatasetError(f"torchvision's {parts[1]} is not in {root!r} ({error})") from error
        if data is None:
            raise DatasetError(
                f"torchvision's {parts[1]} has no train and test split that could be asked for"
            )
        classes = getattr(data, "classes", None)
        labels = next((getattr(data, n) for n in ("targets", "labels", "_labels") if hasattr(data, n)), None)
        if labels is None:
            raise DatasetError(f"torchvision's {parts[1]} does not list its labels; use its files as folders")
        for i, label in enumerate(np.asarray(labels).tolist()):
            name = str(classes[label]) if classes else str(label)
            yield Item(f"{split}-{i:06d}", partial(_torchvision_image, data, i), name, split)


def _torchvision_image(data: Any, index: int) -> ImageLike:
    image: ImageLike = data[index][0]
    return image
