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
        "model.safetensors": "b46e87c5ef4bcc1780928d69299805932e2b6e9c7c2130d5f50a06ac5d99fcf4",
    },
    "dove-tiny-q": {
        "config.json": "8f5b44145f8f75bc2ca4fd79910de4a1b141e2234f7908fb52f9e8c8c19f7330",
        "model.safetensors": "65a1b2e47a4da33b262e350657ea65983a3fd1e209756ab2e5f4dc84445742e2",
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
