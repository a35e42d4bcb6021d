"""Dataclasses from plain values: what is taken, and the sentence for what is not."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import pytest

from dove_ext.fields import UnknownFieldError, build


@dataclass(frozen=True)
class Inner:
    sides: tuple[int, ...] = (1, 2)


@dataclass(frozen=True)
class Outer:
    count: int = 1
    share: float = 0.5
    on: bool = False
    rule: Literal["a", "b"] = "a"
    paths: list[str] = field(default_factory=list)
    more: dict[str, Any] = field(default_factory=dict)
    inner: Inner = Inner()


def test_plain_values_become_fields() -> None:
    values = {"share": 2, "paths": "one", "more": {"x": 1}, "inner": {"sides": [3]}, "rule": "b"}
    built = build(Outer, values)
    assert built == Outer(share=2.0, paths=["one"], more={"x": 1}, inner=Inner((3,)), rule="b")
    assert type(built.share) is float
    assert build(Outer, {}) == Outer()


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"count": True}, "count must be a whole number, got True"),
        ({"count": 1.0}, "count must be a whole number, got 1.0"),
        ({"on": 1}, "on must be bool, got 1"),
        ({"share": "1"}, "share must be float, got '1'"),
        ({"share": 10**400}, "share must be a number below 1.8e308, got a larger one"),
        ({"rule": 3}, "rule must be str, got 3"),
        ({"paths": ["a", 1]}, "paths must be a list of str, got ['a', 1]; quote its items"),
        ({"paths": ("a",)}, "paths must be list, got ('a',)"),
        ({"more": []}, "more must be dict, got []"),
        ({"inner": [1]}, "inner must be an object, got [1]"),
        ({"inner": {"sides": 3}}, "sides must be tuple, got 3"),
        ({"inner": {"sides": [3, "4"]}}, "sides must be tuple, got [3, '4']"),
    ],
)
def test_other_types_are_refused(values: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError) as caught:
        build(Outer, values, {int: "a whole number"})
    assert str(caught.value) == sentence


def test_an_unknown_name_comes_with_the_nearest() -> None:
    with pytest.raises(UnknownFieldError, match="unknown field 'cuont'") as caught:
        build(Outer, {"cuont": 1})
    assert (caught.value.name, caught.value.hint) == ("cuont", "; did you mean 'count'?")
    with pytest.raises(UnknownFieldError) as caught:
        build(Outer, {"inner": {"zzz": 1}})
    assert (caught.value.name, caught.value.hint) == ("zzz", "")
