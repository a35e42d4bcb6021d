"""A benchmark's folder: its files by their official names, and their rows, checked as they are read."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dove_vlm.benchmarks.records import BenchmarkError


@dataclass(frozen=True)
class Row:
    """A JSON object of a file, and how an error calls it."""

    values: dict[str, Any]
    name: str

    def get(self, field: str, kind: type | tuple[type, ...]) -> Any:
        """A field that must be there.

        Raises:
            BenchmarkError: if it is not, or is of another kind.
        """
        if field not in self.values:
            raise BenchmarkError(f"{self.name} has no {field!r}; download the file anew")
        value = self.values[field]
        if not isinstance(value, kind) or isinstance(value, bool):
            raise BenchmarkError(f"{self.name} has {value!r:.60} as {field!r}; download the file anew")
        return value

    def rows(self, field: str) -> list[Row]:
        """A list of objects that must be there.

        Raises:
            BenchmarkError: likewise.
        """
        found = self.get(field, list)
        if not all(isinstance(row, dict) for row in found):
            raise BenchmarkError(f"{self.name} has {found!r:.60} as {field!r}; download the file anew")
        return [Row(row, f"{field} of {self.name}") for row in found]

    def texts(self, field: str) -> tuple[str, ...]:
        """A list of texts that must be there and not be empty.

        Raises:
            BenchmarkError: likewise.
        """
        found = self.get(field, list)
        if not found or not all(isinstance(text, str) for text in found):
            raise BenchmarkError(f"{self.name} has {found!r:.60} as {field!r}; download the file anew")
        return tuple(found)


@dataclass(frozen=True)
class Data:
    """A benchmark's folder.

    Attributes:
        root: what the user gave.
        benchmark: whose files these are to be.
        home: where they are to be had.
        places: folders in `root` where files may lie, besides `root` itself.
    """

    root: Path
    benchmark: str
    home: str
    places: tuple[str, ...] = ()

    def file(self, *names: str) -> Path:
        """The first of some files that is there.

        Raises:
            BenchmarkError: if none is.
        """
        found = self.maybe(*names)
        if found is None:
            raise BenchmarkError(self._missing(" or ".join(names)))
        return found

    def maybe(self, *names: str) -> Path | None:
        """Likewise, or None."""
        return next((p for name in names for p in self._paths(name) if p.is_file()), None)

    def folder(self, *names: str) -> Path:
        """The first of some folders that is there.

        Raises:
            BenchmarkError: if none is.
        """
        for name in names:
            for path in self._paths(name):
                if path.is_dir():
                    return path
        raise BenchmarkError(self._missing(" or ".join(f"{name}/" for name in names)))

    def _paths(self, name: str) -> list[Path]:
        return [self.root / place / name for place in ("", *self.places)]

    def _missing(self, what: str) -> str:
        if not self.root.is_dir():
            return f"the folder {str(self.root)!r} of {self.benchmark} does not exist; give another as --data"
        return f"{str(self.root)!r} lacks {what} of {self.benchmark}; get it from {self.home}"

    def list(self, path: Path, *keys: str) -> list[Row]:
        """The rows of a file: a list, behind keys if there are any.

        Raises:
            BenchmarkError: naming the file, if it is not of that form or there are none.
        """
        found = read_json(path)
        for key in keys:
            found = Row(_object(found, path), repr(str(path))).get(key, (list, dict))
        if not isinstance(found, list) or not found:
            raise BenchmarkError(f"{str(path)!r} holds no list of questions; download it anew")
        return [Row(_object(row, path), f"row {i} of {str(path)!r}") for i, row in enumerate(found)]

    def mapping(self, path: Path) -> dict[str, Row]:
        """The rows of a file that is an object of objects.

        Raises:
            BenchmarkError: likewise.
        """
        found = _object(read_json(path), path)
        return {
            key: Row(_object(row, path), f"question {key!r} of {str(path)!r}") for key, row in found.items()
        }

    def texts(self, path: Path, key: str) -> tuple[str, ...]:
        """A file's list of texts behind a key.

        Raises:
            BenchmarkError: likewise.
        """
        return Row(_object(read_json(path), path), repr(str(path))).texts(key)


def read_json(path: Path) -> Any:
    """What a file holds.

    Raises:
        BenchmarkError: if it cannot be read or is no JSON.
    """
    try:
        return json.loads(path.read_bytes())
    except OSError as error:
        raise BenchmarkError(f"{str(path)!r} cannot be read: {error.strerror}; mend it") from error
    except (ValueError, RecursionError) as error:
        raise BenchmarkError(f"{str(path)!r} is no JSON ({error}); download it anew") from error


def _object(found: Any, path: Path) -> dict[str, Any]:
    if not isinstance(found, dict) or not found:
        raise BenchmarkError(
            f"{str(path)!r} holds {type(found).__name__} {found!r:.40} where an object belongs; download it "
            "anew"
        )
    return found
