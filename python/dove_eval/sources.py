"""How datasets lie on disk: each reader lists the images, with class and split where the layout has them."""

from __future__ import annotations

import math
import re
import struct
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dove_ext.errors import DoveError, ImageError
from dove_ext.images import ImageLike, drawn
from dove_ext.images.index import ImageIndex, Location
from dove_ext.images.labels import TEST, TRAIN, Notes

TORCHVISION = "torchvision:"
DRAWN = "drawn:"
DRAWN_EACH = 50  # of a kind, where nobody says how many
_CIFAR_NAMES = re.compile(r"(data_batch_\d+|test_batch|train|test)\.bin")


class DatasetError(DoveError, ValueError):
    """Data that cannot be found, or that lacks what a measurement needs."""


@dataclass(frozen=True)
class Item:
    """One image.

    Attributes:
        name: unique within its set; what a report calls it.
        open: reads it; anything `prepare_images` takes as one image.
        label: class name.
        split: "train", "test", or a word that the data has and `ImageSet.labelled` does not know.
    """

    name: str
    open: Callable[[], ImageLike]
    label: str | None = None
    split: str | None = None


def list_items(paths: Sequence[str | Path]) -> tuple[list[list[Item]], list[list[Path]], list[str]]:
    """The images of each path; for what a path may be see `dove_eval.datasets.find_images`.

    Returns:
        (list, list, list): for each path its images in order, for each path the files they come from, and
        sentences on what was left out.

    Raises:
        DatasetError: naming the path and what was expected.
    """
    items: list[list[Item]] = [[] for _ in paths]
    files: list[list[Path]] = [[] for _ in paths]
    plain: list[int] = []
    for i, path in enumerate(paths):
        if str(path).startswith(TORCHVISION):
            items[i], files[i] = list(_torchvision(str(path))), _torchvision_files(str(path))
        elif str(path).startswith(DRAWN):
            items[i], files[i] = _drawn(str(path)), [Path(drawn.__file__)]  # drawn otherwise: another set
        elif _is_npz(Path(path)):
            items[i], files[i] = list(_npz(Path(path))), [Path(path)]
        elif binary := _cifar_files(Path(path)):
            items[i], files[i] = list(_cifar(binary)), binary
        else:
            plain.append(i)
    if not plain:
        return items, files, []
    try:
        index = ImageIndex([paths[i] for i in plain])  # together, so that their names differ
        notes = Notes(index)
        for i in range(len(index)):
            location = index.locate(i)
            path = plain[location.root]
            items[path].append(_indexed_item(index, i, location, notes))
            if not files[path] or files[path][-1] != location.file:
                files[path].append(location.file)
    except ImageError as error:
        raise DatasetError(str(error)) from error
    return items, files, index.left_out


def _is_npz(path: Path) -> bool:
    """By its suffix; what does not exist, or is a folder of such a name, is left to the index."""
    try:
        return path.suffix.lower() == ".npz" and path.is_file()
    except OSError:
        return False


def _cifar_files(path: Path) -> list[Path]:
    try:
        return [p for p in sorted(path.rglob("*.bin")) if _CIFAR_NAMES.fullmatch(p.name)]
    except OSError:  # whoever looks for pictures there will say so
        return []


def _indexed_item(index: ImageIndex, i: int, location: Location, notes: Notes) -> Item:
    """A picture that is a file or in a shard."""
    label, split = notes.label(i)
    in_shard = location.member is not None
    return Item(
        index.short_name(i),
        partial(index.read, i) if in_shard else partial(Path, location.file),
        label,
        split,
    )


def _npz(path: Path) -> Iterator[Item]:
    """Images stay on disk if the file is not compressed (`np.savez`); else all of them are in memory."""
    content: dict[str, np.ndarray] = {}
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name.removesuffix(".npy") for name in archive.namelist()]
            for name in ("images", "labels", "classes"):
                if name in names:
                    content[name] = _array(path, archive, name)
    except Exception as error:  # damaged archives raise nearly anything, from BadZipFile to zlib.error
        raise DatasetError(f"{str(path)!r} is not an npz file or is damaged ({error})") from error
    images, labels, classes = content.get("images"), content.get("labels"), content.get("classes")
    if images is None or images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3:
        held = [_shapes(content)] if content else []
        held += [name for name in names if name not in content]
        raise DatasetError(
            f"{str(path)!r} must hold `images` uint8 [N, H, W, 3]; it holds {', '.join(held) or 'nothing'}"
        )
    if labels is not None and (labels.shape != images.shape[:1] or labels.dtype.kind not in "iu"):
        raise DatasetError(
            f"{str(path)!r}: `labels` must be integers [{len(images)}], got {_shapes(content)}"
        )
    if classes is not None and classes.ndim != 1:
        raise DatasetError(f"{str(path)!r}: `classes` must be names [C], got {_shapes(content)}")
    for i in range(len(images)):
        label = None if labels is None else _class_name(int(labels[i]), classes, repr(str(path)))
        yield Item(f"{path.stem}-{i:06d}", partial(images.__getitem__, i), label)


def _array(path: Path, archive: zipfile.ZipFile, name: str) -> np.ndarray:
    """One array of an npz file; `images` are memory-mapped where their bytes lie in the file as they are."""
    member = archive.getinfo(f"{name}.npy")
    with archive.open(member) as stream:
        version = np.lib.format.read_magic(stream)
        if name == "images" and version == (1, 0) and member.compress_type == zipfile.ZIP_STORED:
            shape, fortran, dtype = np.lib.format.read_array_header_1_0(stream)
            head = stream.tell()
            if head + math.prod(shape) * dtype.itemsize != member.file_size:
                raise ValueError(f"{name} has not the size that its header says")
            if 0 not in shape:  # nothing cannot be mapped
                with path.open("rb") as file:  # the lengths of two fields in front of the array
                    file.seek(member.header_offset + 26)
                    fields = struct.unpack("<HH", file.read(4))
                offset = member.header_offset + 30 + sum(fields) + head
                return np.memmap(path, dtype, "r", offset, shape, "F" if fortran else "C")
    with archive.open(member) as stream:
        return np.asarray(np.lib.format.read_array(stream, allow_pickle=False))


def _shapes(arrays: dict[str, np.ndarray]) -> str:
    return ", ".join(f"{name} {a.dtype} {list(a.shape)}" for name, a in arrays.items())


def _class_name(label: int, classes: Sequence[Any] | np.ndarray | None, where: str) -> str:
    """The class that a label stands for; its number where the classes have no names."""
    if label < 0:
        raise DatasetError(f"{where} has the label {label}; classes count from 0, so leave such images out")
    if classes is None:
        return str(label)
    if label >= len(classes):
        raise DatasetError(
            f"{where} has the label {label}, but names {len(classes)} classes (0 to {len(classes) - 1}); "
            "correct the labels or the names"
        )
    return str(classes[label])


def _cifar(files: list[Path]) -> Iterator[Item]:
    """The binary version: label bytes (CIFAR-100: coarse and fine), then 3 x 32 x 32 bytes, red first."""
    for file in files:
        fine = file.stem in ("train", "test")  # CIFAR-100
        head = 2 if fine else 1
        try:
            size = file.stat().st_size
            if size == 0 or size % (head + 3072):
                raise DatasetError(
                    f"{str(file)!r} is not a file of CIFAR's binary version ({size} bytes instead of some "
                    f"times {head + 3072}); get a whole copy, or rename it if it is something else"
                )
            rows = np.memmap(file, np.uint8, "r").reshape(-1, head + 3072)
            listing = file.with_name("fine_label_names.txt" if fine else "batches.meta.txt")
            classes = listing.read_text(encoding="utf-8").split() if listing.exists() else None
        except (OSError, UnicodeDecodeError) as error:
            raise DatasetError(f"{str(file)!r} or its class names cannot be read ({error})") from error
        split = TEST if file.stem.startswith("test") else TRAIN
        for i, label in enumerate(rows[:, head - 1].tolist()):
            name = _class_name(label, classes, repr(str(file)))
            yield Item(f"{file.stem}-{i:05d}", partial(_cifar_image, rows, i, head), name, split)


def _cifar_image(rows: np.ndarray, index: int, head: int) -> Tensor:
    return torch.from_numpy(rows[index, head:].reshape(3, 32, 32).copy())


def _drawn(path: str) -> list[Item]:
    """`drawn:KINDS[:COUNT]`: pictures that are not photographs, so many of each kind, labelled by it."""
    _, kinds, *count = path.split(":")
    chosen = {"trained": drawn.TRAINED, "held-back": drawn.HELD_BACK}.get(kinds, (kinds,))
    known = {*drawn.TRAINED, *drawn.HELD_BACK}
    if not {*chosen} <= known or len(count) > 1 or not all(n.isascii() and n.isdigit() for n in count):
        raise DatasetError(
            f"{path!r} must read drawn:KIND or drawn:KIND:COUNT with a KIND of trained, held-back, "
            f"{', '.join(sorted(known))}"
        )
    number = int(count[0]) if count else DRAWN_EACH
    return [
        Item(f"{kind}-{seed:04d}", partial(drawn.draw, kind, seed), kind)
        for kind in chosen for seed in range(number)
    ]  # fmt: skip


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
            except Exception as error:  # damaged files raise anything; ImportError: a reader that is missing
                raise DatasetError(f"torchvision cannot read {parts[1]} in {root!r} ({error})") from error
        if data is None:
            raise DatasetError(
                f"torchvision's {parts[1]} has no train and test split that could be asked for"
            )
        classes = getattr(data, "classes", None)
        labels = next((getattr(data, n) for n in ("targets", "labels", "_labels") if hasattr(data, n)), None)
        numbers = np.asarray(labels)
        if numbers.ndim != 1 or numbers.dtype.kind not in "iu":
            raise DatasetError(f"torchvision's {parts[1]} does not list its labels; use its files as folders")
        for i, label in enumerate(numbers.tolist()):
            name = _class_name(label, classes or None, f"torchvision's {parts[1]}")
            yield Item(f"{split}-{i:06d}", partial(_torchvision_image, data, i), name, split)


def _torchvision_files(path: str) -> list[Path]:
    """Every file in ROOT, but what a report in it wrote: which of them torchvision reads is not known."""
    files = sorted(p for p in Path(path.split(":", 2)[2]).rglob("*") if not p.is_dir())
    return [p for p in files if p.parts[-3:-2] != ("rows",) and p.name not in ("report.html", "report.json")]


def _torchvision_image(data: Any, index: int) -> ImageLike:
    try:
        image: ImageLike = data[index][0]
    except Exception as error:  # its readers pass on whatever PIL raises
        title = f"image {index} of torchvision's {type(data).__name__}"
        raise ImageError(f"{title} cannot be read ({error}); get a whole copy of it") from error
    return image
