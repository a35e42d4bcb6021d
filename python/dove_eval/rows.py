"""One row of numbers an image, on disk: what makes a measurement frugal and resumable.

A table is a folder with one `.npy` file a column and `state.json`, which says how many rows are finished.
Rows are written in order; a run that stops loses at most the batch it was in. Columns are memory-mapped: the
memory in use does not grow with the number of images.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import torch
from torch import Tensor

from dove_eval.datasets import ImageSet
from dove_eval.sources import DatasetError
from dove_ext._info import __version__
from dove_ext.atomic import atomic_write, make_writable_folder
from dove_ext.errors import OutputError
from dove_ext.images import Fit
from dove_ext.progress import progress

Values = Mapping[str, Tensor]  # column -> [B] or [B, W]
SAVE_SECONDS = 10.0  # the work that a killed process loses at most, besides its batch
STATE = "state.json"
FORMAT = 1  # raised when a change makes the same settings give other numbers


class Rows:
    """Finished rows of one measurement on one set of images; see `fill`."""

    def __init__(self, folder: Path, images: ImageSet) -> None:
        self.folder, self.images = folder, images
        self.done = 0
        self.bad: list[int] = []  # without values
        self.unreadable: list[int] = []  # of these, what could not be read
        self._columns: dict[str, np.ndarray] = {}
        if (folder / STATE).is_file():
            try:
                state = json.loads((folder / STATE).read_text(encoding="utf-8"))
                self.done, self.bad, self.unreadable = (state[k] for k in ("done", "bad", "unreadable"))
                for name in state["columns"]:
                    self._columns[name] = np.lib.format.open_memmap(folder / f"{name}.npy", mode="r+")
                images.failed.update(state["failed"])
            except (OSError, ValueError, KeyError, TypeError) as error:
                raise DatasetError(
                    f"the rows in {str(folder)!r} are damaged ({type(error).__name__}); remove that folder"
                ) from error

    @property
    def names(self) -> list[str]:
        """Columns."""
        return list(self._columns)

    @property
    def good(self) -> np.ndarray:
        """Indices int64 of the images that could be read, in order."""
        keep = np.ones(self.done, bool)
        keep[self.bad] = False
        return keep.nonzero()[0]

    def __getitem__(self, column: str) -> np.ndarray:
        """A column, memory-mapped, [N] or [N, W]; rows of unreadable images are included (see `good`)."""
        return self._columns[column][: self.done]

    def values(self, column: str) -> np.ndarray:
        """A column of single numbers in float64, of the readable images only: [n]."""
        return self[column][self.good].astype(np.float64)

    def append(self, count: int, good: list[int], values: Values) -> None:
        """Add the next `count` rows, of which `good` (indices into the set) have values.

        An image with a value that is not finite is left out like one that cannot be read: it would make every
        mean NaN.
        """
        self.add(list(range(self.done, self.done + count)), good, values)
        self.done += count

    def add(self, indices: list[int], good: list[int], values: Values) -> None:
        """Rows of the images `indices`, see `append`."""
        odd: dict[int, str] = {}
        for index in good:
            self.images.failed.pop(self.images.items[index].name, None)
        for name, tensor in values.items():
            array = tensor.detach().float().cpu().numpy()
            if name not in self._columns:
                self._columns[name] = self._create(name, (len(self.images), *array.shape[1:]))
            self._columns[name][good] = array
            finite = np.isfinite(array.reshape(len(good), -1)).all(1)
            for i in (~finite).nonzero()[0]:
                odd.setdefault(good[i], name)
        for index, name in odd.items():
            image = self.images.items[index].name
            self.images.failed[image] = (
                f"{image!r} gives NaN or infinity in {name!r}; check the weights, or try --dtype float32"
            )
        self.bad = sorted({*self.bad, *indices} - set(good).difference(odd))
        self.unreadable = sorted({*self.unreadable, *indices} - set(good))

    def _create(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        """A column with its place on the disk: without it, a full disk would kill the process at some row."""
        path = self.folder / f"{name}.npy"
        try:
            column = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=shape)
            _reserve(path)
        except OSError as error:
            path.unlink(missing_ok=True)  # room for what is finished so far
            raise OutputError(
                f"cannot write {str(path)!r}: {error.strerror}; free some space or choose another place"
            ) from error
        return column

    def save(self) -> None:
        """Make what was appended survive the process."""
        for column in self._columns.values():
            column.flush()  # type: ignore[attr-defined]
        state = {
            "done": self.done, "bad": self.bad, "unreadable": self.unreadable, "columns": self.names,
            "failed": self.images.failed,
        }  # fmt: skip
        with atomic_write(self.folder / STATE) as temporary:
            temporary.write_text(json.dumps(state), encoding="utf-8")


def _reserve(path: Path) -> None:
    """Give a file's holes a place on the disk, where the system can."""
    if not hasattr(os, "posix_fallocate"):
        return
    with path.open("r+b") as file:
        try:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):  # a file system that reserves nothing
                raise


def fill(
    output: Path,
    name: str,
    images: ImageSet,
    compute: Callable[[list[int], Tensor], Values],
    *,
    identity: Any,
    size: int,
    fit: Fit = "crop",
    batch_size: int = 16,
) -> Rows:
    """Compute a row for every image, going on where an earlier run with the same identity stopped.

    Args:
        output: the report's folder; the rows lie in `rows/` there.
        name: of the measurement; also the progress bar's.
        images: the set.
        compute: from indices and pixels [b, 3, size, size] in [-1, 1] to columns [b] or [b, W].
        identity: whatever decides the numbers besides the images (JSON): weights, settings.
        size: side of the images.
        fit: how an image becomes square.
        batch_size: images a call of `compute`.

    Raises:
        DatasetError: if no image can be used.
        OutputError: if the disk is full.
    """
    made_by = [FORMAT, __version__, PIL.__version__]
    key = json.dumps([made_by, name, identity, images.digest, size, fit], sort_keys=True)
    folder = output / "rows" / f"{name}-{hashlib.sha256(key.encode()).hexdigest()[:12]}"
    make_writable_folder(folder)
    rows = Rows(folder, images)
    saved = time.monotonic()
    with progress(len(images), name) as bar, torch.no_grad():
        bar.update(rows.done)
        try:
            for index in tuple(rows.unreadable):  # which may be readable now
                good, pixels = images.read([index], size, fit)
                rows.add([index], good, {} if pixels is None else compute(good, pixels))
            while rows.done < len(images):
                indices = list(range(rows.done, min(rows.done + batch_size, len(images))))
                good, pixels = images.read(indices, size, fit)
                rows.append(len(indices), good, {} if pixels is None else compute(good, pixels))
                bar.update(len(indices))
                if time.monotonic() - saved > SAVE_SECONDS:
                    rows.save()
                    saved = time.monotonic()
        finally:  # Ctrl-C keeps what is finished
            rows.save()
    if not len(rows.good):
        reason = next(iter(images.failed.values()), "")
        raise DatasetError(f"none of the {len(images)} images of {images.source} can be used: {reason}")
    return rows
