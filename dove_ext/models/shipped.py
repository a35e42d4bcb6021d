"""The models whose files come with the package, and the check that they are the files that did."""

from __future__ import annotations

from functools import lru_cache
from hashlib import sha256
from pathlib import Path

from dove_ext.errors import CheckpointError

# SHA-256 of what is loaded, by model and file. `make hashes` writes this table anew.
SHIPPED: dict[str, dict[str, str]] = {
    "dove-tiny": {
        "config.json": "8d5cdb9737070bd77b355612d6d5b9f5facea5802bbb087a0b901a9eb10e82d0",
        "model.safetensors": "c861696c21d5a94af189961d68f72ba693080df3d94b42bffc3440144393e9b3",
    },
    "dove-tiny-q": {
        "config.json": "8f5b44145f8f75bc2ca4fd79910de4a1b141e2234f7908fb52f9e8c8c19f7330",
        "model.safetensors": "d8bc364a1bbe1ec5c0bb827507772f11b8d3f5552f5ef1d6338a14aa34e68c7e",
        "tokenizer.json": "61fdcc8988b1c344cae8c12c521f8bc08e353c6d065d1468cc530dd4bc52a9da",
    },
}


def digest(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal; computed once a process for a file that stays as it is.

    Raises:
        OSError: if it cannot be read.
    """
    status = path.stat()
    return _digest(path, (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns))


@lru_cache(maxsize=64)
def _digest(path: Path, identity: tuple[int, ...]) -> str:
    hasher = sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            hasher.update(chunk)
    return hasher.hexdigest()


def check_shipped(name: str, folder: Path) -> None:
    """Refuse the folder of a shipped model of which a file is torn, changed or missing.

    Args:
        name: the model's; one that is not in `SHIPPED` is not checked.
        folder: where its files lie.

    Raises:
        CheckpointError: naming the file.
    """
    for file, expected in SHIPPED.get(name, {}).items():
        path = folder / file
        try:
            found = digest(path)
        except OSError as error:
            wrong = f"cannot be read ({error.strerror})"
        else:
            if found == expected:
                continue
            wrong = f"is not the file that came with dove_ext (SHA-256 {found[:16]}.., not {expected[:16]}..)"
        raise CheckpointError(f"{path} {wrong}; reinstall: pip install --force-reinstall --no-deps dove-ext")
