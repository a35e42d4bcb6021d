"""Parquet files as shards of pictures, as Hugging Face's `datasets` writes them.

Rows are listed from the metadata, and read in the order of the file by streaming through their row group: a
group may hold many gigabytes.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from dove_ext.errors import ImageError
from dove_ext.images.shards import Member

SUFFIX = ".parquet"
_AT_ONCE = 16  # rows that are decoded together; a picture may have megabytes
_BUFFER = 1 << 20
_KEYS_AT_ONCE, _LONGEST_KEY = 1024, 1000
_ROWS_A_BYTE = 64  # a thousand times what pictures take; rows that are all alike take next to nothing


class Columns(NamedTuple):
    """Which columns of a parquet file count.

    Attributes:
        image: picture files: binary, or a struct with a field "bytes".
        key: what the pictures are called, strings or whole numbers; None: the number of the row.
    """

    image: str = "image"
    key: str | None = None


def is_table(path: str | os.PathLike[str]) -> bool:
    """Whether a file is named like a parquet file."""
    return str(path).lower().endswith(SUFFIX)


def list_rows(table: Path, columns: Columns) -> Iterator[Member]:
    """The rows of a parquet file, without their pictures; a row's number is its `offset`.

    Raises:
        ImageError: naming the file, if it cannot be read, is no parquet file or is damaged, pyarrow is
            missing, or a column is missing or of another kind.
    """
    with _speaking(table):
        file = _open(table)
        _check_columns(file, table, columns)
        _check_rows(file.metadata, table)
        if columns.key is None:
            yield from (Member(str(row), row, 0) for row in range(file.metadata.num_rows))
            return
        row = 0
        for batch in file.iter_batches(_KEYS_AT_ONCE, columns=[columns.key]):
            for key in batch.column(0).to_pylist():
                if key is None or key == "":
                    raise ImageError(f"{str(table)!r}: row {row} has no {columns.key!r}; choose another key")
                if isinstance(key, str) and len(key) > _LONGEST_KEY:
                    raise ImageError(
                        f"{str(table)!r}: row {row} has a {columns.key!r} of {len(key)} characters, and "
                        f"a key has at most {_LONGEST_KEY}; choose another key"
                    )
                yield Member(str(key), row, 0)
                row += 1


def read_picture(table: Path, row: int, column: str, title: str) -> bytes:
    """The picture file in a row; `title` is how an error calls it.

    Raises:
        ImageError: if there is none, or the parquet file cannot be read.
    """
    value = read_cell(table, row, column)
    data = value.get("bytes") if isinstance(value, dict) else value
    if not data:
        path = value.get("path") if isinstance(value, dict) else None
        why = "has no picture" if path is None else f"names a picture, {path!r}, and does not hold it"
        raise ImageError(f"{title} {why}; embed the pictures in the parquet file")
    return bytes(data)


def read_text(table: Path, row: int, column: str) -> str | None:
    """The text in a row; None where there is none.

    Raises:
        ImageError: if the column is missing or holds something else, or the file cannot be read.
    """
    value = read_cell(table, row, column)
    if value is not None and not isinstance(value, str):
        raise ImageError(f"the column {column!r} of {str(table)!r} holds {type(value).__name__}, no texts")
    return value or None


class _Cursor:
    """A column of a file that is read from front to back."""

    def __init__(self, table: Path, column: str) -> None:
        self._file, self._column = _open(table), column
        if column not in self._file.schema_arrow.names:
            raise ImageError(_missing(table, column, self._file.schema_arrow.names))
        metadata = self._file.metadata
        self._starts = [0]
        for group in range(metadata.num_row_groups):
            self._starts.append(self._starts[-1] + metadata.row_group(group).num_rows)
        self._group, self._first = -1, 0
        self._batch: Any = None
        self._batches: Iterator[Any] = iter(())

    def value(self, row: int) -> Any:
        inside = self._group >= 0 and self._first <= row < self._starts[self._group + 1]
        if not inside:
            self._group = next(g for g, end in enumerate(self._starts[1:]) if row < end)
            self._first, self._batch = self._starts[self._group], None
            self._batches = self._file.iter_batches(
                batch_size=_AT_ONCE, row_groups=[self._group], columns=[self._column]
            )
        while self._batch is None or row >= self._first + self._batch.num_rows:
            self._first += 0 if self._batch is None else self._batch.num_rows
            self._batch = next(self._batches)
        return self._batch.column(0)[row - self._first].as_py()


_cursors: dict[tuple[Any, ...], _Cursor] = {}  # of this process, the newest last
_MOST_CURSORS = 4
_lock = threading.Lock()


def read_cell(table: Path, row: int, column: str) -> Any:
    """A value of a parquet file as Python has it; quick for the next row of the same file.

    Raises:
        ImageError: as `list_rows`.
    """
    with _lock, _speaking(table):
        file = table.stat()  # another file may lie there by now
        place = (os.getpid(), file.st_dev, file.st_ino, file.st_size, file.st_mtime_ns, column)
        cursor = _cursors.pop(place, None) or _Cursor(table, column)
        value = cursor.value(row)
        _cursors[place] = cursor
        while len(_cursors) > _MOST_CURSORS:
            del _cursors[next(iter(_cursors))]
        return value


def _open(table: Path) -> Any:
    try:
        from pyarrow import parquet
    except ImportError as error:
        raise ImageError(
            f"{str(table)!r} needs pyarrow to be read: pip install 'dove-ext[data]' ({error})"
        ) from error
    return parquet.ParquetFile(table, buffer_size=_BUFFER)


@contextmanager
def _speaking(table: Path) -> Iterator[None]:
    """What pyarrow raises inside becomes one sentence that names the file."""
    name = repr(str(table))
    try:
        yield
    except ImageError:
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise ImageError(f"{name} cannot be read: {error.strerror or error}") from error
        raise ImageError(
            f"{name} is not a parquet file or is damaged ({_said(error, 200)}); get a whole copy of it"
        ) from error


def _said(by: object, most: int = 60) -> str:
    """What pyarrow says, in one line."""
    return " ".join(str(by).split())[:most]


def _check_rows(metadata: Any, table: Path) -> None:
    """Refuse a few kilobytes that say that they are millions of pictures, each of which takes memory."""
    rows, size = metadata.num_rows, table.stat().st_size
    groups = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
    if not 0 <= rows <= _ROWS_A_BYTE * size or sum(groups) != rows or min(groups, default=0) < 0:
        raise ImageError(
            f"{str(table)!r} is damaged: it says that it has {rows} rows in {size} bytes; get a whole copy"
        )


def _check_columns(file: Any, table: Path, columns: Columns) -> None:
    from pyarrow import types

    schema = file.schema_arrow
    for column in (columns.image, columns.key):
        if column is not None and column not in schema.names:
            raise ImageError(_missing(table, column, schema.names))
    kind = schema.field(columns.image).type
    if types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        kind = kind.field("bytes").type
    if not (types.is_binary(kind) or types.is_large_binary(kind)):
        raise ImageError(
            f"the column {columns.image!r} of {str(table)!r} holds {_said(kind)}, no picture files; name "
            "one of binary values, or of structs with bytes"
        )
    if columns.key is None:
        return
    kind = schema.field(columns.key).type
    if not (types.is_string(kind) or types.is_large_string(kind) or types.is_integer(kind)):
        raise ImageError(
            f"the column {columns.key!r} of {str(table)!r} holds {_said(kind)}; keys are strings or whole "
            "numbers"
        )


def _missing(table: Path, column: str, names: list[str]) -> str:
    return f"{str(table)!r} has no column {column!r}; it has {', '.join(map(repr, names))}"[:400]
