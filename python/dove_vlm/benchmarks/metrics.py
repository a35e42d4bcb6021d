"""How right an answer is, by each benchmark's own rule: numbers from 0 to 1."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence

from dove_ext.metrics.edits import levenshtein
from dove_vlm.benchmarks.normalise import normalise_vqa


def vqa_accuracy(
    answer: str, references: Sequence[str], normalise: Callable[[str], str] = normalise_vqa
) -> float:
    """VQA accuracy: right if three of the other nine people say so, averaged over whom is left out.

    VQA's own script does not normalise where all people agree to the letter; here, as in the evaluations
    built on it, both sides always are.

    Args:
        answer: the model's.
        references: the people's, ten in VQA; at least two.
        normalise: `normalise_vqa` or `normalise_textvqa`.

    Raises:
        ValueError: if there are fewer than two references.
    """
    people = len(references)
    if people < 2:
        raise ValueError(
            f"VQA accuracy compares people, and there are {people}; give at least two references"
        )
    answer = normalise(answer)
    same = sum(normalise(reference) == answer for reference in references)
    agreeing, others = min(1.0, (same - 1) / 3), min(1.0, same / 3)
    return (same * agreeing + (people - same) * others) / people


def anls(answer: str, references: Sequence[str], threshold: float = 0.5) -> float:
    """Average normalised Levenshtein similarity, of one question: the best over its references.

    Case does not count, nor how much white space there is. A distance of `threshold` of the longer text's
    length, or more, is 0.

    Args:
        answer: the model's.
        references: at least one.
        threshold: 0.5 in DocVQA and InfographicVQA.

    Raises:
        ValueError: if there is no reference.
    """
    if not references:
        raise ValueError("there is no reference; give at least one")
    return max(_similarity(_plain(answer), _plain(reference), threshold) for reference in references)


def _plain(text: str) -> str:
    return " ".join(text.lower().split())


def _similarity(left: str, right: str, threshold: float) -> float:
    longer = max(len(left), len(right))
    distance = levenshtein(left, right) / longer if longer else 0.0
    return 1 - distance if distance < threshold else 0.0


def relaxed_accuracy(answer: str, reference: str, tolerance: float = 0.05) -> float:
    """ChartQA's: a number may be off by 5% of the reference, a text must be the same but for case.

    "12%" is the number 0.12. Where one side is no number, or the reference is 0, texts are compared.
    """
    answer, reference = answer.strip(), reference.strip()
    given, right = _number(answer), _number(reference)
    if given is not None and right:
        return float(abs(given - right) <= tolerance * abs(right))
    return float(answer.lower() == reference.lower())


def _number(text: str) -> float | None:
    try:
        value = float(text.rstrip("%")) / 100 if text.endswith("%") else float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def exact_match(answer: str, reference: str) -> float:
    """GQA's: the same word or phrase, in lower case and without a period at its end."""
    return float(gqa_form(answer) == gqa_form(reference))


def gqa_form(answer: str) -> str:
    """An answer as GQA's evaluation wants it."""
    return answer.strip().rstrip(".").lower()


_ALONE = re.compile(r"\(?([A-Za-z])[.):]?")
_FIRST = re.compile(r"(?:\(([A-Z])\)|([A-Z])[.):])\s")
_SAID = re.compile(r"answer(?: is|:)\s*\(?([A-Z])\b(?!')", re.IGNORECASE)


def option_letter(answer: str, options: int) -> str | None:
    """Which option an answer to a question with choices means.

    In this order: the answer is a letter alone ("b", "B.", "(B)"); it begins with one ("B. Mars",
    "(B) Mars"); it says so once ("The answer is B."). An option's text without its letter is none: that is
    how LLaVA counts.

    Args:
        answer: the model's.
        options: how many there are; later letters mean nothing.

    Returns:
        str | None: the letter, in upper case.
    """
    answer = answer.strip()
    if alone := _ALONE.fullmatch(answer):
        found = alone[1].upper()
    elif first := _FIRST.match(answer):
        found = first[1] or first[2]
    else:
        said = {letter for letter in _SAID.findall(answer) if letter.isupper()}
        if len(said) != 1:
            return None
        (found,) = said
    return found if ord(found) - ord("A") < options else None
