"""How far one text is from another."""

from __future__ import annotations


def levenshtein(left: str, right: str) -> int:
    """How many characters must be put in, taken out or changed."""
    row = list(range(len(right) + 1))
    for i, a in enumerate(left, 1):
        diagonal, row[0] = row[0], i
        for j, b in enumerate(right, 1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (a != b))
    return row[-1]
