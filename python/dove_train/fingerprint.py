"""What data a run began with, in a few numbers, so that one that goes on with other data says so."""

from __future__ import annotations

from hashlib import blake2b
from pathlib import Path
from typing import Any

from torch import Tensor

from dove_ext.errors import ImageError
from dove_ext.images.index import ImageIndex
from dove_train.settings import TrainingError

# So many names count, evenly spread: a second or two, where a million would take ten times as long. One image
# more or less moves all names behind it.
SAMPLED_NAMES = 100_000
# Images that are read: names alone do not tell one 0.png from another, and reading all takes hours.
SAMPLED_IMAGES = 16
# Mean colours, in levels of 8 bits, may differ by this much: decoders of JPEG files do not agree to the bit.
TOLERANCE = 1.0


def fingerprint(index: ImageIndex, paths: list[Path], held_out: Tensor) -> dict[str, Any]:
    """The number and names of images in order, and the mean colours of a few and of those held out.

    Names are relative to the folders given, which may move between two parts of a run.

    Args:
        index: the training images.
        paths: the folders, shards and pictures that they were found in.
        held_out: float32 [N, 3, S, S] in [-1, 1], the held-out images.

    Returns:
        dict: plain values, for a checkpoint.
    """
    names = blake2b(digest_size=16)
    # A shard or picture that is given itself counts by its name.
    bases = sorted({f"{p if p.is_dir() else p.parent}/" for p in paths}, key=len, reverse=True)
    for i in index.spread(SAMPLED_NAMES):
        name = index.name(i)
        base = next((base for base in bases if name.startswith(base)), "")
        names.update(name[len(base) :].encode("utf-8", "surrogateescape") + b"\0")
    return {
        "images": len(index),
        "names": names.hexdigest(),
        "colours": [_mean_colour(index, i) for i in index.spread(SAMPLED_IMAGES)],
        "held_out": held_out.mean((2, 3)).add(1).mul(127.5).tolist(),
    }


def _mean_colour(index: ImageIndex, i: int) -> list[float]:
    """Three levels from 0 to 255; none of an image that cannot be read, which training skips, too."""
    try:
        return [float(level) for level in index.read(i).float().mean((1, 2))]
    except ImageError:
        return []


def require_same_data(before: dict[str, Any], now: dict[str, Any], where: Path) -> None:
    """Refuse to go on with other data than a run began with.

    Args:
        before: `fingerprint`'s result, from a checkpoint.
        now: the same of the data given.
        where: the checkpoints' folder, for the message.

    Raises:
        TrainingError: saying what differs.
    """
    count, held_out = now["images"], len(now["held_out"])
    if before["images"] != count:
        what = f"{before['images']} training images before, {count} now"
    elif before["names"] != now["names"]:
        what = f"{count} training images as before, but of other names or in another order"
    elif not _alike(before["colours"], now["colours"]):
        what = f"{count} training images of the same names as before, but other pictures"
    elif len(before["held_out"]) != held_out:
        what = f"{len(before['held_out'])} held-out images before, {held_out} now"
    elif not _alike(before["held_out"], now["held_out"]):
        what = f"{held_out} held-out images as before, but other pictures"
    else:
        return
    raise TrainingError(
        f"{where} was written with other data: {what}; give the data that the run began with, or another "
        "output (-o) to begin a new run"
    )


def _alike(before: list[list[float]], now: list[list[float]]) -> bool:
    return all(
        abs(a - b) <= TOLERANCE
        for one, other in zip(before, now, strict=True)
        for a, b in zip(one, other, strict=False)  # nothing to compare where one could not be read
    )
