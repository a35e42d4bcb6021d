"""Small pictures, a small model in a folder, and what sets of tokens are compared by."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path
from typing import Any

from PIL import Image

from dove_data.settings import Settings
from dove_data.shards import Row
from tests.models.micro import micro, photos, stop_at_share

COUNT = 10


def save_model(folder: Path) -> Path:
    stop_at_share(micro()).save_pretrained(folder)
    return folder


def png(number: int, side: int = 32) -> bytes:
    stream = io.BytesIO()
    picture = Image.fromarray(photos(COUNT)[number % COUNT].permute(1, 2, 0).numpy())
    picture.resize((side, side)).save(stream, "PNG")
    return stream.getvalue()


def folder_of(path: Path, count: int = COUNT, side: int = 32) -> Path:
    for number in range(count):
        (path / f"n{number % 2}").mkdir(parents=True, exist_ok=True)
        (path / f"n{number % 2}" / f"{number}.png").write_bytes(png(number, side))
    return path


def tar_of(path: Path, count: int = COUNT) -> Path:
    with tarfile.open(path, "w") as tar:
        for number in range(count):
            member = tarfile.TarInfo(f"{number}.png")
            member.size = len(png(number))
            tar.addfile(member, io.BytesIO(png(number)))
    return path


def parquet_of(path: Path, pyarrow: Any, struct: bool = True, count: int = COUNT, **columns: Any) -> Path:
    pictures: list[Any] = [png(number) for number in range(count)]
    if struct:
        pictures = [{"bytes": data, "path": None} for data in pictures]
    from pyarrow import parquet

    parquet.write_table(pyarrow.table({"image": pictures, **columns}), path, row_group_size=4)
    return path


def settings_of(model: Path, **changes: Any) -> Settings:
    return Settings(**{"model": str(model), "shard_size": 4, "batch_size": 2, **changes})


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a set."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def stop_after(rows: int, error: type[BaseException] = KeyboardInterrupt) -> Any:
    """An `on_start` that interrupts a run behind so many shards."""

    def on_start(pictures: int) -> Any:
        seen: list[Row] = []

        def told(row: Row) -> None:
            seen.append(row)
            if len(seen) == rows:
                raise error

        return told

    return on_start
