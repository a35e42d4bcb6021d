"""Pictures in and out of the verbs: finding files, reading them in batches past bad ones, naming outputs."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dove_ext.errors import DoveError, ImageError

if TYPE_CHECKING:
    from torch import Tensor

    from dove_ext.images import Fit

SUFFIX = ".dove.png"


@dataclass(frozen=True)
class Source:
    """A picture file to read, and the name it goes by in reports and token files."""

    path: Path
    name: str


@dataclass
class Failures:
    """Inputs that could not be used, kept until the others are done."""

    verb: str
    failed: list[tuple[str, str]] = field(default_factory=list)

    def add(self, path: str | os.PathLike[str], error: Exception) -> None:
        """Keep one for the end."""
        self.failed.append((str(path), str(error)))

    def require_some(self, done: int) -> None:
        """Give up if nothing could be used.

        Raises:
            DoveError: with the one failure, or all of them.
        """
        if not done:
            messages = [message for _, message in self.failed]
            lines = "".join(f"\n  {message}" for message in messages)
            raise DoveError(messages[0] if len(messages) == 1 else f"none of the inputs can be used:{lines}")

    def as_json(self) -> list[dict[str, str]]:
        """For the JSON reports."""
        return [{"path": path, "error": message} for path, message in self.failed]

    def report(self, done: int) -> int:
        """List them on stderr, and return the exit code."""
        if self.failed:
            print(
                f"dove {self.verb}: {len(self.failed)} of {len(self.failed) + done} failed:", file=sys.stderr
            )
            for _, message in self.failed:
                print(f"  {message}", file=sys.stderr)
        return 1 if self.failed else 0


def find_pictures(arguments: Iterable[str], failures: Failures) -> list[Source]:
    """Expand folders into the picture files in them, at all depths, sorted.

    Hidden files and this command's own outputs (`SUFFIX`) are passed over in folders. A file that is named
    twice is taken once.

    Args:
        arguments: files and folders, as given. Files are looked at only when they are read.
        failures: takes folders without pictures.

    Returns:
        list[Source]: a file given by name goes by its file name, one found in a folder by its path in it.
    """
    from dove_ext.images.files import IMAGE_SUFFIXES

    sources: dict[Path, Source] = {}
    for argument in arguments:
        path = Path(argument)
        if not path.is_dir():
            sources.setdefault(path.absolute(), Source(path, path.name))
            continue
        walk = os.walk(path, onerror=lambda error: failures.add(error.filename, _unreadable(error)))
        found = [Path(folder, f) for folder, _, files in walk for f in files]
        found = [f for f in found if f.suffix.lower() in IMAGE_SUFFIXES]
        found = [f for f in found if not f.name.startswith(".") and not f.name.endswith(SUFFIX)]
        if not found:
            failures.add(path, ImageError(f"{argument!r} is a folder without picture files; check the path"))
        for file in sorted(found):
            sources.setdefault(file.absolute(), Source(file, file.relative_to(path).as_posix()))
    return list(sources.values())


def _unreadable(error: OSError) -> ImageError:
    return ImageError(f"{error.filename!r} cannot be read: {error.strerror}")


def read_batches(
    sources: Sequence[Source], size: int, fit: Fit, batch_size: int, failures: Failures
) -> Iterator[tuple[list[Source], Tensor]]:
    """Read pictures, past those that cannot be read.

    Yields:
        (list[Source], Tensor): what could be read, and its pixels [B, 3, S, S] in [0, 1]. `prepare_images`
        turns these into the very numbers it would have made of the files.
    """
    import torch

    from dove_ext.images import prepare_images

    for start in range(0, len(sources), max(batch_size, 1)):  # all of no pictures at once is 0
        good, pixels = [], []
        for source in sources[start : start + batch_size]:
            try:
                pixels.append(prepare_images(source.path, size, fit=fit))
                good.append(source)
            except ImageError as error:
                failures.add(source.path, error)
        if good:
            yield good, (torch.cat(pixels) + 1) / 2


def output_names(names: Sequence[str]) -> list[str]:
    """One file name an image, such as "cat.dove.png" for "pets/cat.jpg".

    The names may come from a stranger's file. What is left of them is the last part without its suffix,
    in printable characters that every file system takes; the second "cat" becomes "cat-2". Names of the
    sheets that `dove reconstruct` writes ("sheet-01") are left free.
    """
    taken: set[str] = set()
    result = []
    for name in names:
        stem = re.split(r"[/\\]", name)[-1]
        stem = stem.rsplit(".", 1)[0] or stem
        stem = "".join(c if c.isprintable() and c not in '<>:"|?*' else "_" for c in stem).strip(". ")
        stem = stem.encode("utf-8")[:120].decode("utf-8", "ignore") or "image"
        stem += "-image" if re.fullmatch(r"sheet-\d+", stem, re.IGNORECASE) else ""
        unique, count = stem, 1
        while unique.casefold() in taken:
            count += 1
            unique = f"{stem}-{count}"
        taken.add(unique.casefold())
        result.append(unique + SUFFIX)
    return result


def printable(text: str | Path) -> str:
    """A name for the terminal; one that holds control characters or undecodable bytes is escaped."""
    text = str(text)
    return text if text.isprintable() else repr(text)[1:-1]


def progress(total: int, verb: str) -> Any:
    """A progress bar over images on stderr, if that is a terminal."""
    from tqdm import tqdm  # type: ignore[import-untyped]

    return tqdm(total=total, desc=verb, unit="image", disable=None, leave=False, file=sys.stderr)
