"""Conversations about pictures: LLaVA's JSON (text-only rows included), or simple JSON lines."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

from dove_train.settings import TrainingError

PLACE = "<image>"
PEOPLE = {"human": 0, "user": 0, "gpt": 1, "assistant": 1}


@dataclass(frozen=True)
class Conversation:
    """One row.

    Attributes:
        name: what an error calls it.
        images: their paths, in the order of the placeholders.
        files: these as the row names them, wherever they lie.
        turns: question and answer in turn; `PLACE` stands in a question where an image belongs.
    """

    name: str
    images: tuple[Path, ...]
    files: tuple[str, ...]
    turns: tuple[tuple[str, str], ...]


def read_conversations(paths: Iterable[str | Path], root: str | Path | None = None) -> list[Conversation]:
    """All rows of some files.

    LLaVA's layout is a JSON list of {"id", "image", "conversations": [{"from": "human" | "gpt", "value"}]},
    where text-only rows have no "image". A file that ends in .jsonl has such a row in each line, or {"image",
    "question", "answer"}; "image" may also be a list.

    Args:
        paths: the files.
        root: folder that images' names are relative to; None: the file's own.

    Raises:
        TrainingError: naming the file and row that cannot be understood.
    """
    rows: list[Conversation] = []
    for path in map(Path, paths):
        base = Path(root) if root else path.parent
        rows += [_row(values, base, f"{path} row {number}") for number, values in enumerate(_values(path))]
    if not rows:
        raise TrainingError("the data hold no conversation; give files with at least one row")
    return rows


def _values(path: Path) -> list[Any]:
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".jsonl":
            return [json.loads(line) for line in text.split("\n") if line.strip()]  # JSON has no other line
        values = json.loads(text)
    except OSError as error:
        raise TrainingError(
            f"{path} cannot be read: {error.strerror}; give a file of conversations"
        ) from error
    except (ValueError, RecursionError) as error:
        raise TrainingError(f"{path} is not JSON: {error}; name JSON lines .jsonl") from error
    if not isinstance(values, list):
        raise TrainingError(f"{path} must be a JSON list of rows; name JSON lines .jsonl")
    return values


def _row(values: Any, base: Path, name: str) -> Conversation:
    if not isinstance(values, dict):
        raise TrainingError(f"{name} is no JSON object; write one with question and answer, or conversations")
    images = values.get("image") or values.get("images") or []
    images = [images] if isinstance(images, str) else images
    if not isinstance(images, list) or not all(isinstance(image, str) for image in images):
        raise TrainingError(f"{name}: image must be a file's name, or a list of names")
    turns = _turns(values, name)
    places = sum(question.count(PLACE) for question, _ in turns)
    if places == 0 and images:
        turns[0] = (f"{PLACE}\n" * len(images) + turns[0][0], turns[0][1])
    elif places != len(images):
        raise TrainingError(f"{name} has {places} {PLACE} for {len(images)} images; write it once for each")
    if any(PLACE in answer for _, answer in turns):
        raise TrainingError(f"{name} has {PLACE} in an answer; images belong into questions")
    return Conversation(name, tuple(base / image for image in images), tuple(images), tuple(turns))


def _turns(values: dict[str, Any], name: str) -> list[tuple[str, str]]:
    if "conversations" not in values:
        turn = values.get("question"), values.get("answer")
        if not all(isinstance(text, str) for text in turn):
            raise TrainingError(f"{name} has neither conversations, nor question and answer as text")
        return [turn]  # type: ignore[list-item]
    said, turns = [], values["conversations"]
    if not isinstance(turns, list):
        raise TrainingError(f"{name}: conversations must be a list of turns, with from and value")
    for place, one in enumerate(turns):
        who, text = (one.get("from"), one.get("value")) if isinstance(one, dict) else (None, None)
        if not isinstance(who, str) or PEOPLE.get(who) != place % 2 or not isinstance(text, str):
            raise TrainingError(
                f"{name}: turn {place} must be text of {('human', 'gpt')[place % 2]!r}, who speak in turn"
            )
        said.append(text)
    if not said or len(said) % 2:
        raise TrainingError(f"{name} ends without an answer; drop the last question")
    return list(zip(said[::2], said[1::2], strict=True))


def fingerprint(rows: list[Conversation]) -> str:
    """Of all texts and images' names, so that a run that goes on with other data says so."""
    digest = blake2b(digest_size=16)
    for row in rows:
        digest.update(repr((row.files, row.turns)).encode("utf-8", "surrogatepass"))
    return digest.hexdigest()
