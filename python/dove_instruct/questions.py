"""Questions about labelled pictures whose answers are balanced: the question alone tells as little as can be.

What is in a picture is known from its label, from boxes, or because it is a mosaic of labelled pictures.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from dove_ext.images.mosaics import plural

WHAT, IS, COUNT, LEFT = "what", "is", "count", "left"
MOST = 4  # things that are counted
APART = 0.2  # of the picture's width: as far two things must be from one another to be left and right


@dataclass(frozen=True)
class Question:
    """One question about one picture.

    Attributes:
        scene: the number of its picture.
        kind: `WHAT`, `IS`, `COUNT`, `LEFT`, or what another source calls it.
        text: the question.
        answer: in a word or two.
    """

    scene: int
    kind: str
    text: str
    answer: str


@dataclass(frozen=True)
class Scene:
    """What is known of a picture.

    Attributes:
        label: of the whole picture, or "".
        things: (label, x of its middle as a fraction of the width) of each thing with a box.
        unsure: labels of which there may be more than the boxes tell.
    """

    label: str = ""
    things: tuple[tuple[str, float], ...] = ()
    unsure: frozenset[str] = frozenset()

    @property
    def labels(self) -> set[str]:
        """Everything that is known to be seen."""
        return {label for label, _ in self.things} | ({self.label} - {""})


def make_questions(scenes: Sequence[Scene], labels: Iterable[str], seed: int) -> list[Question]:
    """All questions about some pictures, in the order of the pictures.

    Args:
        scenes: the pictures.
        labels: those that are asked for; of others there are too few to learn them.
        seed: which of all possible questions are taken.
    """
    random = np.random.default_rng((seed, 21))
    known = sorted(set(labels))
    found = [Question(i, WHAT, "what is this?", s.label) for i, s in enumerate(scenes) if s.label in known]
    found += _is_there(scenes, known, random)
    found += _how_many(scenes, known, random)
    found += _left(scenes, known, random)
    return sorted(found, key=lambda question: question.scene)


def _article(label: str) -> str:
    return f"{'an' if label[0] in 'aeiou' else 'a'} {label}"


def _is_there(scenes: Sequence[Scene], known: list[str], random: np.random.Generator) -> list[Question]:
    """Of each label as many "yes" as "no"; a "no" is asked of a picture that others are seen in."""
    seen: dict[str, list[int]] = defaultdict(list)
    asked: Counter[int] = Counter()
    for i, scene in enumerate(scenes):
        present = sorted(scene.labels & set(known))
        if present:
            seen[str(random.choice(present))].append(i)
            asked[i] += 1
    questions = []
    free = [i for i in asked]
    for label, yes in sorted(seen.items()):
        absent = [i for i in free if label not in scenes[i].labels | scenes[i].unsure]
        count = min(len(yes), len(absent))
        for chosen, answer in ((yes, "yes"), (absent, "no")):
            picked = random.choice(chosen, count, replace=False).tolist()
            questions += [Question(i, IS, f"is there {_article(label)}?", answer) for i in picked]
    return questions


def _how_many(scenes: Sequence[Scene], known: list[str], random: np.random.Generator) -> list[Question]:
    """Of each label as many pictures with two as with one, and so on, as far as there are any."""
    counted: dict[str, dict[int, list[int]]] = defaultdict(lambda: defaultdict(list))
    for i, scene in enumerate(scenes):
        for label, count in Counter(label for label, _ in scene.things).items():
            if label in known and label not in scene.unsure and count <= MOST:
                counted[label][count].append(i)
    questions = []
    for label, groups in sorted(counted.items()):
        if len(groups) < 2:
            continue
        fewest = min(len(group) for group in groups.values())
        for count, group in sorted(groups.items()):
            text = f"how many {plural(label)} are there?"
            picked = random.choice(group, fewest, replace=False).tolist()
            questions += [Question(i, COUNT, text, str(count)) for i in picked]
    return questions


def _left(scenes: Sequence[Scene], known: list[str], random: np.random.Generator) -> list[Question]:
    """Which of two things is further left; which of them is named first tells nothing."""
    questions = []
    for i, scene in enumerate(scenes):
        counts = Counter(label for label, _ in scene.things)
        alone = [
            (label, x)
            for label, x in scene.things
            if counts[label] == 1 and label in known and label not in scene.unsure
        ]
        pairs = [(a, b) for a in alone for b in alone if b[1] - a[1] > APART]
        if pairs:
            (left, _), (right, _) = pairs[int(random.integers(len(pairs)))]
            first, second = (left, right) if random.random() < 0.5 else (right, left)
            questions.append(Question(i, LEFT, f"which is further left, the {first} or the {second}?", left))
    return questions
