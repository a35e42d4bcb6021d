"""Replays what fuzzing found, and the inputs that it starts from, some of them damaged in plain ways."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.fuzz.targets import TARGETS, try_one

CORPUS = Path(__file__).parent / "corpus"
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("name", TARGETS)
def test_seeds_are_read(name: str) -> None:
    said = [try_one(TARGETS[name], seed) for seed in TARGETS[name].seeds()]
    assert said.count("") >= len(said) // 2, said


@pytest.mark.parametrize("name", TARGETS)
def test_damaged_seeds_are_refused_or_read(name: str) -> None:
    chance = random.Random(name)
    said = []
    for seed in TARGETS[name].seeds():
        for cut in (0, 1, len(seed) // 2, len(seed) - 1):
            said.append(try_one(TARGETS[name], seed[:cut]))
        damaged = bytearray(seed)
        for _ in range(3):
            damaged[chance.randrange(len(damaged) or 1) : 0] = (
                b"" if not damaged else bytes([chance.randrange(256)])
            )
        said.append(try_one(TARGETS[name], bytes(damaged)))
    assert any(said)


@pytest.mark.parametrize(
    "path", sorted(CORPUS.glob("*/*")), ids=lambda path: f"{path.parent.name}-{path.name}"
)
def test_corpus(path: Path) -> None:
    try_one(TARGETS[path.parent.name], path.read_bytes())


def test_the_corpus_is_there() -> None:
    assert {path.name for path in CORPUS.iterdir()} == set(TARGETS)


def test_what_is_no_sentence_is_noticed() -> None:
    from dove_ext.errors import ImageError

    def refuse(data: bytes) -> None:
        raise ImageError(data.decode())

    with pytest.raises(AssertionError, match="not one sentence"):
        try_one(TARGETS["picture"]._replace(run=refuse), b"two\nlines")
    assert try_one(TARGETS["picture"]._replace(run=refuse), b"one line") == "one line"
