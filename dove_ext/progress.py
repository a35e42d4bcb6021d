"""The progress bar of long work on images."""

from __future__ import annotations

import sys
from typing import Any


def progress(total: int, verb: str) -> Any:
    """A progress bar over images on stderr, if that is a terminal."""
    from tqdm import tqdm  # type: ignore[import-untyped]

    return tqdm(total=total, desc=verb, unit="image", disable=None, leave=False, file=sys.stderr)
