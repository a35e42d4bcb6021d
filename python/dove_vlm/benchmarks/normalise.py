"""Answers as VQA's own evaluation writes them before it compares: its rules, oddities included.

Newlines and tabs are spaces; punctuation goes; words are in lower case, number words up to ten become digits,
articles go, apostrophes that were left out come back.
"""

from __future__ import annotations

import re
from functools import lru_cache

_WORDS = "none zero one two three four five six seven eight nine ten"
NUMBERS = {word: str(max(0, i - 1)) for i, word in enumerate(_WORDS.split())}
ARTICLES = ("a", "an", "the")
PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'

# The contractions that the evaluation knows. Those that it writes with a capital never match there, since
# words are in lower case by then; they are left out.
_FORMS = """
ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd
he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've
needn't not've o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've
somebody'll somebody's someone'd someone'd've someone'll someone's something'd something'd've something'll
that's there'd there'd've there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've
weren't what'll what're what's what've when's where'd where's where've who'd who'd've who'll who's who've
why'll why're why's won't would've wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're
you've
"""
CONTRACTIONS = {
    form[:i] + form[i + 1 :]: form
    for form in _FORMS.split()
    for i, letter in enumerate(form)
    if letter == "'"
}
CONTRACTIONS["somebody'd"] = "somebodyd"  # the wrong way round there, too

_DIGIT_COMMA = re.compile(r"\d,+\d")
_PERIOD = re.compile(r"\.(?!\d)")


@lru_cache(maxsize=1 << 18)  # the same answers come again and again
def normalise_vqa(answer: str) -> str:
    """An answer by the rules of VQA (VQAv2, OK-VQA)."""
    answer = answer.replace("\n", " ").replace("\t", " ").strip()
    words = (NUMBERS.get(word, word) for word in _without_punctuation(answer).lower().split())
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES)


@lru_cache(maxsize=1 << 18)
def normalise_textvqa(answer: str) -> str:
    """An answer by the rules of TextVQA: commas, question marks and a possessive's 's first, then VQA's."""
    answer = answer.lower().replace(",", "").replace("?", "").replace("'s", " 's")
    return normalise_vqa(answer.strip())


def _without_punctuation(text: str) -> str:
    """A mark beside a space goes, elsewhere it is a space; with a comma between digits all marks go."""
    thousands = _DIGIT_COMMA.search(text) is not None
    found = text
    for mark in PUNCTUATION:
        alone = f"{mark} " in text or f" {mark}" in text
        found = found.replace(mark, "" if alone or thousands else " ")
    return _PERIOD.sub("", found)
