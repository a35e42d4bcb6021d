"""Dataclasses from plain values, as JSON and YAML give them: every field is known and of its type."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import is_dataclass
from difflib import get_close_matches
from functools import cache
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

T = TypeVar("T")


class UnknownFieldError(ValueError):
    """A name that is none of a dataclass's fields.

    Attributes:
        name: the name as it was given.
        hint: "; did you mean 'steps'?", or empty where no field is called anything like it.
    """

    def __init__(self, name: object, known: Iterable[str]) -> None:
        super().__init__(f"unknown field {name!r}")
        self.name = name
        near = get_close_matches(str(name), known, n=1)
        self.hint = f"; did you mean {near[0]!r}?" if near else ""


def build(cls: type[T], values: Mapping[str, Any], words: Mapping[type, str] | None = None) -> T:
    """A dataclass from plain values.

    Fields are of bool, int, float (whole numbers are taken, too), str, a `Literal` of one type, dict, a list
    or tuple of one type (of text, a single one may stand for the list), or again a dataclass; or one of these
    or None.

    Args:
        cls: the dataclass; its type hints are what is asked for.
        values: by field name; what is missing keeps its default.
        words: what to call a type in messages; others are called by their name.

    Raises:
        UnknownFieldError: if a name is no field of `cls`.
        ValueError: naming the field that is of another type, or as `cls` itself raises.
    """
    hints = _hints(cls)  # type: ignore[arg-type] # classes are hashable
    checked = {}
    for name, value in values.items():
        if name not in hints:
            raise UnknownFieldError(name, hints)
        checked[name] = _checked(name, value, hints[name], words or {})
    return cls(**checked)


@cache
def _hints(cls: type) -> dict[str, Any]:
    return get_type_hints(cls)


def _checked(name: str, value: Any, hint: Any, words: Mapping[type, str]) -> Any:
    if get_origin(hint) is UnionType:  # of a type and None
        if value is None:
            return None
        hint = next(kind for kind in get_args(hint) if kind is not NoneType)
    kind: Any = get_origin(hint) or hint
    items = get_args(hint)
    if kind is Literal:
        kind = type(items[0])
    if isinstance(kind, type) and is_dataclass(kind):
        if not isinstance(value, dict):
            raise ValueError(f"{name} must be an object, got {value!r}")
        return build(kind, value, words)
    if kind is float and type(value) is int:
        try:
            return float(value)
        except OverflowError as error:
            raise ValueError(f"{name} must be a number below 1.8e308, got a larger one") from error
    if kind is list and items[0] is str and isinstance(value, str):
        return [value]
    fits = type(value) is kind
    if kind is tuple:  # JSON has lists only
        fits = isinstance(value, (list, tuple)) and all(type(item) is items[0] for item in value)
    if not fits:
        raise ValueError(f"{name} must be {words.get(kind, kind.__name__)}, got {value!r}")
    if kind is list and not all(isinstance(item, items[0]) for item in value):
        item = words.get(items[0], items[0].__name__)
        raise ValueError(f"{name} must be a list of {item}, got {value!r}; quote its items")
    return tuple(value) if kind is tuple else value
