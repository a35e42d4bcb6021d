"""What the verbs write: names for the pictures, and never over an input or a photograph."""

from __future__ import annotations

import re
from argparse import ArgumentTypeError
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dove_ext.errors import OutputError

if TYPE_CHECKING:
    from dove_ext.images.index import ImageIndex

# `dove_ext.images.find` passes over files of this name; spelt out here too, since that module loads torch.
SUFFIX = ".dove.png"


def output_path(text: str) -> str:
    """The path behind -o, for argparse: "-", elsewhere a word for standard output, is refused."""
    if text == "-":
        raise ArgumentTypeError("'-' is no place for a result, standard output carries the report; name one")
    return text


def picture_files(index: ImageIndex) -> Iterable[Path]:
    """The files that an index reads."""
    return (index.locate(i).file for i in range(len(index)))


def check_no_picture(output: str) -> None:
    """Refuse tokens a place that is named like a picture, or has one in it.

    Behind a forgotten name, `-o *.jpg` names the first of somebody's photographs.

    Raises:
        OutputError: naming the output.
    """
    from dove_ext.images.files import IMAGE_SUFFIXES

    why = "is named like a picture" if Path(output).suffix.lower() in IMAGE_SUFFIXES else ""
    if why or _starts_like_a_picture(output):
        why = why or "is a picture"
        raise OutputError(
            f"{output!r} {why}, and tokens would be written over it; name the file of tokens behind -o, such "
            "as tokens.safetensors"
        )


def _starts_like_a_picture(path: str) -> bool:
    from PIL import Image

    from dove_ext.images.files import FORMATS

    Image.init()
    try:
        with Image.open(path, formats=[name for name in FORMATS if name in Image.OPEN]):
            return True
    except Image.DecompressionBombError:
        return True
    except Exception:  # missing, or something else; a hostile header may raise anything
        return False


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
