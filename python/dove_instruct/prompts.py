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
    """The same as a Jinja template, for `DoveLlavaProcessor`; the tokenizer adds its own beginning."""
    *words, gap = WORDING[template]
    system, user, assistant = map(repr, words)
    return (
        f"{{{{ {system} }}}}{{% for m in messages %}}{{% if m.role == 'user' %}}"
        f"{{{{ {user} }}}}{_TEXT}{{{{ {assistant} }}}}"
        f"{{% else %}}{gap}{_TEXT}{eos}{{% endif %}}{{% endfor %}}"
    )


def beginning(tokenizer: Any) -> list[int]:
    """What a tokenizer puts in front of every text; not all that know a first token do."""
    bare = tokenizer("a", add_special_tokens=False)["input_ids"]
    whole = tokenizer("a")["input_ids"]
    start = next((i for i in range(len(whole)) if whole[i : i + len(bare)] == bare), 0)
    return list(whole[:start])


def tokenize(
    row: Conversation,
    counts: Sequence[int],
    tokenizer: Any,
    *,
    template: str,
    image_token_id: int,
    max_length: int,
) -> tuple[list[int], list[int]]:
    """A row's `input_ids` and `labels`: answers and the end behind each are learned, nothing else.

    Args:
        row: the conversation.
        counts: how many tokens each of its images has.
        tokenizer: the language model's.
        template: one of `WORDING`.
        image_token_id: stands for each token of an image.
        max_length: what is behind so many tokens is cut off.

    Raises:
        LongRowError: if nothing of an answer, or not all of an image, is left.
    """
    system, user, assistant, gap = WORDING[template]
    ids = beginning(tokenizer)
    labels = [LEARN_NOT] * len(ids)
    numbers = iter(counts)

    def add(text: str, learned: bool) -> None:
        found = tokenizer(text, add_special_tokens=False)["input_ids"]
        ids.extend(found)
        labels.extend(found if learned else [LEARN_NOT] * len(found))

    for turn, (question, answer) in enumerate(row.turns):
        asked = ((system if turn == 0 else "") + user + question.strip() + assistant).split(PLACE)
        for part, text in enumerate(asked):
            if part:
                count = next(numbers)
                ids.extend([image_token_id] * count)
                labels.extend([LEARN_NOT] * count)
            if text:
                add(text, learned=False)
        add(gap + answer.strip(), learned=True)
        if tokenizer.eos_token_id is not None:
            ids.append(tokenizer.eos_token_id)
            labels.append(tokenizer.eos_token_id)
    kept, learned = ids[:max_length], labels[:max_length]
    if kept.count(image_token_id) < sum(counts) or all(label == LEARN_NOT for label in learned):
        raise LongRowError(
            f"{row.name} has {len(ids)} tokens, {sum(counts)} of images, and not all of these or no answer "
            f"is left at max_length {max_length}; raise it, or give lengths a max_tokens"
        )
    return kept, learned
