"""Images as users of transformers pass them: one, a list, a list a prompt; and as dove_ext takes them."""

from __future__ import annotations

from collections.abc import Sequence
from http.client import HTTPException
from io import BytesIO
from typing import Any
from urllib.request import Request, urlopen

import numpy as np
from torch import Tensor

from dove_ext import __version__
from dove_ext.errors import ImageError
from dove_ext.images.files import read_stream
from dove_ext.tokens import DoveTokens

URLS = ("http://", "https://", "data:")
TIMEOUT = 30  # seconds that a server may be silent


def by_prompt(images: Any) -> list[list[Any]] | None:
    """The images of each prompt, if they come as a list of lists; None if they come flat."""
    if isinstance(images, list | tuple) and any(isinstance(x, list | tuple) or x is None for x in images):
        return [_row(row) for row in images]
    return None


def _row(row: Any) -> list[Any]:
    if row is None:
        return []
    return list(row) if isinstance(row, list | tuple) else [row]


def flat(images: Any) -> list[Any]:
    """All images in order, each one that `dove_ext.prepare_images` takes; those behind URLs are fetched."""
    rows = by_prompt(images)
    found = _listed(images) if rows is None else [image for row in rows for image in row]
    return [_fetched(x) if isinstance(x, str) and x.startswith(URLS) else x for x in found]


def _fetched(url: str) -> Tensor:
    """The picture behind a URL, read as a file is: uint8 [3, H, W].

    Raises:
        ImageError: if it cannot be had or read.
    """
    name = repr(url if len(url) < 100 else f"{url[:97]}...")
    request = Request(url, headers={"User-Agent": f"dove_ext/{__version__}"})
    try:
        with urlopen(request, timeout=TIMEOUT) as answer:
            data = answer.read()
    except (OSError, ValueError, HTTPException) as error:
        raise ImageError(f"{name} cannot be fetched: {getattr(error, 'reason', error)}") from error
    return read_stream(BytesIO(data), name)


def _listed(images: Any) -> list[Any]:
    batch = isinstance(images, Tensor | np.ndarray) and images.ndim == 4
    return list(images) if batch or isinstance(images, list | tuple) else [images]


def count(images: Any) -> int:
    """How many they are."""
    if images is None:
        return 0
    if isinstance(images, DoveTokens):
        return len(images) if images.tiles is None else len(images.tiles.pictures)
    rows = by_prompt(images)
    return len(_listed(images)) if rows is None else sum(len(row) for row in rows)


def check_prompts(text: Sequence[str], images: Any, image_token: str) -> None:
    """Refuse prompts whose placeholders are not those of their images.

    Raises:
        ValueError: naming the prompt, or both sums where images come flat.
    """
    found = [prompt.count(image_token) for prompt in text]
    rows = None if images is None or isinstance(images, DoveTokens) else by_prompt(images)
    if rows is not None:
        if len(rows) != len(text):
            raise ValueError(
                f"there are {len(text)} prompts, but lists of images for {len(rows)}; give one list a "
                "prompt, [] where it has none"
            )
        for i, (places, row) in enumerate(zip(found, rows, strict=True)):
            if places != len(row):
                raise ValueError(
                    f"prompt {i} has {places} {image_token} for {len(row)} images; write {image_token} once "
                    "where each image belongs"
                )
    elif sum(found) != count(images):
        raise ValueError(
            f"the prompts have {sum(found)} {image_token} for {count(images)} images; write {image_token} "
            "once where each image belongs"
        )
