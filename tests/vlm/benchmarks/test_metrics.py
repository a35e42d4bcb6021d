"""Metrics against examples worked by hand from their definitions, and against other implementations."""

from __future__ import annotations

import importlib.util
import random
import runpy
from pathlib import Path

import pytest

from dove_vlm.benchmarks.metrics import (
    anls,
    exact_match,
    levenshtein,
    option_letter,
    relaxed_accuracy,
    vqa_accuracy,
)
from dove_vlm.benchmarks.normalise import CONTRACTIONS, normalise_textvqa, normalise_vqa


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("Yes", "yes"),
        ("  the Dog\n", "dog"),
        ("a man and an apple", "man and apple"),
        ("Two", "2"),
        ("none", "0"),
        ("ten", "10"),
        ("eleven", "eleven"),
        ("dont know", "don't know"),
        ("couldnt've", "couldn't've"),
        ("y'allll", "y'all'll"),
        ("somebody'd", "somebodyd"),  # as the evaluation has it
        ("twas", "'twas"),
        ("Im", "im"),  # its capital keys never match
        ("black/white", "black white"),  # inside a word: a space
        ("black / white", "black white"),  # beside a space: nothing
        ("t-shirt, red", "t shirt red"),
        ("1,000", "1000"),  # a comma between digits...
        ("1,000-2,000 t-shirts", "10002000 tshirts"),  # ... and all marks go
        ("3.5", "3.5"),
        ("u.s.", "us"),
        ("v1.", "v1"),
        ("5.30 p.m.", "5.30 pm"),
        ("it's: red", "it's: red"),  # colon and apostrophe are no marks
        ("what?", "what "),
        ("", ""),
    ],
)
def test_vqa_normalisation(answer: str, expected: str) -> None:
    assert normalise_vqa(answer) == expected.strip()


def test_textvqa_normalisation() -> None:
    assert normalise_textvqa("Levi's, 501?") == "levi 's 501"
    assert normalise_vqa("Levi's") == "levi's"
    assert normalise_textvqa("1,5-2") == "15 2" and normalise_vqa("1,5-2") == "152"


def test_contractions() -> None:
    assert len(CONTRACTIONS) == 114
    assert CONTRACTIONS["wheres"] == "where's" and "wed" not in CONTRACTIONS and "its" not in CONTRACTIONS


@pytest.mark.parametrize(
    ("same", "expected"),
    # k of 10 people agree: k of them leave one out who agrees, the others one who does not.
    [(0, 0), (1, 9 / 3 / 10), (2, (2 / 3 + 8 * 2 / 3) / 10), (3, (3 * 2 / 3 + 7) / 10), (4, 1), (10, 1)],
)  # fmt: skip
def test_vqa_accuracy(same: int, expected: float) -> None:
    people = ["red"] * same + ["blue"] * (10 - same)
    assert vqa_accuracy("Red.", people) == pytest.approx(expected)


def test_vqa_accuracy_normalises_both_sides() -> None:
    assert vqa_accuracy("two", ["2"] * 5 + ["The two"] * 5) == 1.0
    assert vqa_accuracy("levi 's", ["Levi's"] * 10, normalise_textvqa) == 1.0
    assert vqa_accuracy("levi 's", ["Levi's"] * 10) == 0.0
    with pytest.raises(ValueError, match="at least two references"):
        vqa_accuracy("a", ["a"])


@pytest.mark.parametrize(
    ("answer", "references", "expected"),
    [
        ("Linked In", ["linkedin"], 1 - 1 / 9),
        ("  LINKED   in ", ["linked in"], 1.0),
        ("0.28", ["0.3", "0.28"], 1.0),
        ("abcd", ["abxy"], 0.0),  # a distance of just the threshold
        ("abcde", ["abcxy"], 0.6),
        ("", ["a"], 0.0),
        ("", [""], 1.0),
        ("kitten", ["sitting"], 1 - 3 / 7),
    ],
)
def test_anls(answer: str, references: list[str], expected: float) -> None:
    assert anls(answer, references) == pytest.approx(expected)


def test_anls_needs_a_reference() -> None:
    with pytest.raises(ValueError, match="at least one"):
        anls("a", [])


@pytest.mark.parametrize(
    ("answer", "reference", "expected"),
    [
        ("105", "100", 1), ("95", "100", 1), ("105.1", "100", 0), ("-95", "-100", 1), ("5", "-5", 0),
        ("12%", "0.12", 1), ("12%", "12", 0), ("12%", "12.5%", 1),
        ("0", "0", 1), ("0.0", "0", 0),  # of a reference of 0, texts are compared
        ("brazil ", "Brazil", 1), ("Brazil.", "Brazil", 0), ("1,000", "1000", 0), ("nan", "NaN", 1),
        ("inf", "5", 0), ("", "5", 0), ("five", "5", 0), ("%", "%", 1),
    ],
)  # fmt: skip
def test_relaxed_accuracy(answer: str, reference: str, expected: float) -> None:
    assert relaxed_accuracy(answer, reference) == expected


def test_exact_match() -> None:
    assert exact_match("Traffic light.", "traffic light") == 1.0
    assert exact_match("the traffic light", "traffic light") == 0.0
    assert exact_match("yes", "no") == 0.0


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("B", "B"), ("b", "B"), (" B.", "B"), ("(b)", "B"), ("C)", "C"), ("B:", "B"),
        ("B. Mars", "B"), ("(C) Sun", "C"), ("A. The answer is B", "A"), ("b. mars", None),
        ("The answer is B.", "B"), ("the answer is (C)", "C"), ("Answer: A", "A"), ("Answer:C. Sun", "C"),
        ("The answer is Mars.", None), ("The answer is A'level", None), ("The answer is a planet", None),
        ("The answer is A. No, the answer is B.", None), ("The answer is B. Yes, the answer is B.", "B"),
        ("D", None), ("D. Venus", None), ("The answer is D", None),  # of three options
        ("A dog", None), ("Mars", None), ("", None), ("AB", None),
    ],
)  # fmt: skip
def test_option_letters(answer: str, expected: str | None) -> None:
    assert option_letter(answer, 3) == expected


def texts(seed: int, count: int) -> list[str]:
    """Random answers with all that the rules look at."""
    choice = random.Random(seed)
    parts = [*"abc.,;/[]\"{}()=+\\_-><@`?!'139\n\t:%$ ", "the ", "An ", "two ", "none ", "dont ", "1,000",
             "3.5", " .5", "'s", "couldnt've ", "y'allll ", "Yes", " "]  # fmt: skip
    return ["".join(choice.choice(parts) for _ in range(choice.randint(0, 9))) for _ in range(count)]


def test_anls_is_that_of_another_implementation() -> None:
    other = pytest.importorskip("anls", reason="the package anls is not installed (pip install anls)")
    made = texts(1, 3000)
    for answer, *references in zip(made[::3], made[1::3], made[2::3], strict=True):
        assert anls(answer, references) == pytest.approx(other.anls_score(answer, references))


def test_levenshtein_is_that_of_another_implementation() -> None:
    other = pytest.importorskip("Levenshtein", reason="the package Levenshtein is not installed")
    made = texts(2, 2000)
    assert all(levenshtein(a, b) == other.distance(a, b) for a, b in zip(made[::2], made[1::2], strict=True))


def test_normalisation_is_that_of_lmms_eval() -> None:
    found = importlib.util.find_spec("lmms_eval")
    if found is None or not found.submodule_search_locations:
        pytest.skip("lmms-eval is not installed")
    # The file alone: its package imports much.
    path = Path(found.submodule_search_locations[0]) / "tasks" / "_task_utils" / "vqa_eval_metric.py"
    other = runpy.run_path(str(path))["EvalAIAnswerProcessor"]()
    for text in texts(3, 3000):
        assert normalise_textvqa(text) == other(text)
        plain = text.replace("\n", " ").replace("\t", " ").strip()
        assert normalise_vqa(text) == other.process_digit_article(other.process_punctuation(plain))
