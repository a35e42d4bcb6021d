"""Conversations as a language model reads them, and which of it is learned: the answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dove_instruct.conversations import PLACE, Conversation
from dove_train.settings import TrainingError
from dove_vlm.collate import LEARN_NOT

SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
# What stands in front of all, of each question, behind it, and in front of its answer, which is learned.
WORDING = {"vicuna": (f"{SYSTEM} ", "USER: ", " ASSISTANT:", " "), "plain": ("", "", "\n", "")}


class LongRowError(TrainingError):
    """A row of which too little is left at `max_length`."""


_TEXT = (
    "{% if m.content is string %}{{ m.content }}{% else %}{% for c in m.content %}"
    "{% if c.type == 'image' %}<image>\n{% else %}{{ c.text }}{% endif %}{% endfor %}{% endif %}"
)


def chat_template(template: str, eos: str) -> str:
    """The same as a Jinja template, for `DoveLlavaProcessor`; the tokenizer adds its own beginning.

    A system message takes the place of the template's own words.
    """
    *words, gap = WORDING[template]
    system, user, assistant = map(repr, words)
    return (
        f"{{% if not messages or messages[0].role != 'system' %}}{{{{ {system} }}}}{{% endif %}}"
        f"{{% for m in messages %}}{{% if m.role == 'user' %}}{{{{ {user} }}}}{_TEXT}{{{{ {assistant} }}}}"
        f"{{% elif m.role == 'system' %}}{_TEXT}{{{{ {words[0][-1:] or chr(10)!r} }}}}"
        f"{{% else %}}{gap}{_TEXT}{eos}{{% endif %}}{{% endfor %}}"
    )


def tokenize(
    row: Conversation,
    counts: Sequence[int],
    tokenizer: Any,
    *,
    template: str,
    image_token: str,
    max_length: int,
) -> tuple[list[int], list[int]]:
    """A row's `input_ids` and `labels`: answers and the end behind each are learned, nothing else.

    The row is read as one text, as the processor reads the prompt of an answer: parts that are read one
    by one may become other tokens.

    Args:
        row: the conversation.
        counts: how many tokens each of its images has.
        tokenizer: the language model's.
        template: one of `WORDING`.
        image_token: stands for each token of an image, and is one token.
        max_length: what is behind so many tokens is cut off.

    Raises:
        LongRowError: if nothing of an answer, or not all of an image, is left.
    """
    parts = _parts(row, counts, tokenizer.eos_token or "", template, image_token)
    ids, labels = (_at_once if tokenizer.is_fast else _one_by_one)(parts, tokenizer)
    image = tokenizer.convert_tokens_to_ids(image_token)
    kept, learned = ids[:max_length], labels[:max_length]
    if kept.count(image) < sum(counts) or all(label == LEARN_NOT for label in learned):
        raise LongRowError(
            f"{row.name} has {len(ids)} tokens, {sum(counts)} of images, and not all of these or no answer "
            f"is left at max_length {max_length}; raise it, or give lengths a max_tokens"
        )
    return kept, learned


def _parts(
    row: Conversation, counts: Sequence[int], eos: str, template: str, image_token: str
) -> list[tuple[str, bool]]:
    """What is written, in order, and whether it is learned."""
    system, user, assistant, gap = WORDING[template]
    numbers = iter(counts)
    parts = []
    for turn, (question, answer) in enumerate(row.turns):
        first, *others = question.strip().split(PLACE)
        asked = first + "".join(image_token * next(numbers) + text for text in others)
        parts.append(((system if turn == 0 else "") + user + asked + assistant, False))
        parts.append((gap + answer.strip() + eos, True))
    return parts


def _at_once(parts: list[tuple[str, bool]], tokenizer: Any) -> tuple[list[int], list[int]]:
    found = tokenizer("".join(text for text, _ in parts), return_offsets_mapping=True)
    ids, places = list(found["input_ids"]), found["offset_mapping"]
    while ids and tuple(places[-1]) == (0, 0):  # the tokenizer's own end; the last answer has one
        ids.pop(), places.pop()
    learned = [flag for text, flag in parts for _ in text]  # of each character
    # What the tokenizer puts in front has no characters.
    labels = [
        i if end > start and learned[start] else LEARN_NOT
        for i, (start, end) in zip(ids, places, strict=True)
    ]
    return ids, labels


def _one_by_one(parts: list[tuple[str, bool]], tokenizer: Any) -> tuple[list[int], list[int]]:
    """For tokenizers of Python, which do not say where a token stands; bytes do not mind."""
    ids, labels = [], []
    for text, learned in parts:
        found = tokenizer(text, add_special_tokens=False)["input_ids"]
        ids += found
        labels += found if learned else [LEARN_NOT] * len(found)
    return ids, labels
