"""Data to tune and test a small model with: conversations about pictures, the pictures, and a tokenizer."""

from __future__ import annotations

import importlib.util
import json
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from dove_ext.atomic import make_writable_folder
from dove_ext.errors import ImageError
from dove_ext.images.files import save_image
from dove_ext.images.index import ImageIndex
from dove_ext.images.labels import Notes
from dove_ext.images.mosaics import centre
from dove_instruct.questions import Question, Scene, make_questions
from dove_train.settings import TrainingError

TRAIN, TEST, IMAGES, TOKENIZER = "train.json", "test.jsonl", "images", "tokenizer"
EASY_VQA = "easy-vqa"
WORDS = 2048  # most entries of the tokenizer
MOSAIC = 256  # pixels
Draw = Callable[[Path], Any]
"""Writes a picture under a path without a suffix, and returns the file."""


def write_questions(
    folder: Path,
    *,
    easy_vqa: Path | None = None,
    train: Sequence[Path] = (),
    test: Sequence[Path] = (),
    mosaics: int = 2000,
    at_least: int = 15,
    turns: int = 1,
    seed: int = 0,
) -> dict[str, dict[str, int]]:
    """Write `TRAIN` (LLaVA's layout), `TEST` (a question a line), their pictures, and a tokenizer.

    Args:
        folder: made by this.
        easy_vqa: the folder "data" of the package easy-vqa, see `find_easy_vqa`.
        train: labelled pictures: folders with a folder a class, or shards whose JSON has `label` or `boxes`.
        test: likewise, others.
        mosaics: so many mosaics of 2 x 2 of the training pictures, and a quarter of that of the test
            pictures: "how many" and "left of" need pictures of several things.
        at_least: labels of fewer training pictures are not asked for.
        turns: most questions in a row of `TRAIN`; the answers of the first may tell those behind them.
        seed: which of all possible questions are taken.

    Returns:
        dict: the number of questions of each kind, in `TRAIN` and in `TEST`.

    Raises:
        TrainingError: if the folder is there, or there is nothing to ask.
        ImageError: if pictures cannot be found or read.
    """
    if folder.exists():
        raise TrainingError(f"{folder} exists; remove it, or choose another folder")
    if bool(train) != bool(test):
        raise TrainingError("labelled pictures need both, --train and --test")
    make_writable_folder(folder.absolute().parent)
    with tempfile.TemporaryDirectory(dir=folder.absolute().parent, prefix=f"{folder.name}.") as place:
        new = Path(place, "data")
        (new / IMAGES).mkdir(parents=True)
        rows: dict[str, list[dict[str, str]]] = {TRAIN: [], TEST: []}
        if easy_vqa is not None:
            for part, split in ((TRAIN, "train"), (TEST, "test")):
                rows[part] += _easy_vqa(easy_vqa / split, new / IMAGES)
        if train:
            labelled = _labelled({TRAIN: train, TEST: test}, new / IMAGES, mosaics, at_least, seed)
            rows = {part: rows[part] + more for part, more in labelled.items()}
        if not rows[TRAIN] or not rows[TEST]:
            raise TrainingError("there is nothing to ask; give easy-vqa, or labelled pictures")
        with (new / TRAIN).open("w", encoding="utf-8") as file:
            json.dump(list(conversations(rows[TRAIN], turns, seed)), file)
        with (new / TEST).open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows[TEST])
        texts = [row[part] for row in rows[TRAIN] for part in ("question", "answer")]
        make_tokenizer(texts).save_pretrained(new / TOKENIZER)
        new.replace(folder)
    return {part: dict(Counter(row["kind"] for row in found)) for part, found in rows.items()}


def conversations(rows: Sequence[dict[str, str]], turns: int, seed: int) -> Iterable[dict[str, Any]]:
    """Questions about one picture as rows of at most `turns` of them, in random order."""
    random = np.random.default_rng((seed, 22))
    of: dict[str, list[dict[str, str]]] = {}
    for row in rows:
        of.setdefault(row["image"], []).append(row)
    for image, asked in of.items():
        order = random.permutation(len(asked)).tolist()
        for start in range(0, len(order), turns):
            said: list[dict[str, str]] = []
            for i in order[start : start + turns]:
                place = "" if said else "<image>\n"
                said.append({"from": "human", "value": place + asked[i]["question"]})
                said.append({"from": "gpt", "value": asked[i]["answer"]})
            yield {"image": image, "conversations": said}


def make_tokenizer(texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """A small byte-level encoding of some texts, in which a frequent word is one token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=WORDS,
        special_tokens=["<s>", "</s>", "<pad>", "<image>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )


# --- easy-vqa -----------------------------------------------------------------------------------------


def find_easy_vqa() -> Path:
    """Where the package easy-vqa has its data.

    Raises:
        TrainingError: if it is not installed.
    """
    found = importlib.util.find_spec("easy_vqa")
    if found is None or found.origin is None:
        raise TrainingError("easy-vqa is not installed: pip install easy-vqa")
    return Path(found.origin).parent / "data"


def _easy_vqa(source: Path, images: Path) -> list[dict[str, str]]:
    try:
        asked = json.loads((source / "questions.json").read_text(encoding="utf-8"))
        rows = []
        for text, answer, number in asked:
            name = f"{EASY_VQA}-{source.name}-{int(number)}.png"
            if not (images / name).exists():
                shutil.copy(source / "images" / f"{int(number)}.png", images / name)
            rows.append({"image": f"{IMAGES}/{name}", "question": text, "answer": answer, "kind": EASY_VQA})
    except (OSError, ValueError, TypeError) as error:
        raise TrainingError(f"{source} is no data of easy-vqa ({error}); pip install easy-vqa") from error
    return rows


# --- Labelled pictures --------------------------------------------------------------------------------


def _labelled(
    paths: dict[str, Sequence[Path]], images: Path, mosaics: int, at_least: int, seed: int
) -> dict[str, list[dict[str, str]]]:
    pictures = {part: _Pictures(given, part.partition(".")[0]) for part, given in paths.items()}
    counts = Counter(label for scene in pictures[TRAIN].scenes for label in scene.labels)
    labels = sorted(label for label, count in counts.items() if count >= at_least)
    if len(labels) < 2:
        raise TrainingError(
            f"{len(labels)} labels have {at_least} training pictures or more; give more pictures, or a lower "
            "--at-least"
        )
    rows: dict[str, list[dict[str, str]]] = {}
    for number, (part, found) in enumerate(pictures.items()):
        found.add_mosaics(mosaics if part == TRAIN else mosaics // 4, labels, seed + number)
        rows[part] = [
            {"image": found.write(q, images), "question": q.text, "answer": q.answer, "kind": q.kind}
            for q in make_questions(found.scenes, labels, seed + number)
        ]
    return rows


class _Pictures:
    """Labelled pictures, and mosaics of them, each with a function that writes it."""

    def __init__(self, paths: Sequence[Path], name: str) -> None:
        self.name = name
        self.index = ImageIndex(paths)
        self.scenes: list[Scene] = []
        self.draw: list[Draw] = []
        self.of_label: dict[str, list[int]] = {}
        self._files: dict[int, str] = {}
        notes = Notes(self.index)
        for i in range(len(self.index)):
            scene = _scene(notes, i)
            self.scenes.append(scene)
            self.draw.append(lambda path, i=i: self._copy(i, path))
            if scene.label:
                self.of_label.setdefault(scene.label, []).append(i)

    def write(self, question: Question, folder: Path) -> str:
        """Where a question's picture lies; it is written if no other question has done so."""
        number = question.scene
        if number not in self._files:
            file = self.draw[number](folder / f"{self.name}-{number:06d}")
            self._files[number] = f"{IMAGES}/{file.name}"
        return self._files[number]

    def _copy(self, i: int, path: Path) -> Path:
        """A picture's file, byte by byte."""
        place = self.index.locate(i)
        file = path.with_name(path.name + Path(place.member or place.file.name).suffix.lower())
        file.write_bytes(self.index.data(i))
        return file

    def add_mosaics(self, count: int, labels: Sequence[str], seed: int) -> None:
        """Mosaics of 2 x 2 pictures with one to four of one label among two or more others."""
        known = [label for label in labels if label in self.of_label]
        if len(known) < 2:
            return
        for number in range(count):
            random = np.random.default_rng((seed, 23, number))
            asked = str(random.choice(known))
            others = [label for label in known if label != asked]
            wanted = int(random.integers(1, 5))
            rest = random.choice(others, 4 - wanted, replace=len(others) < 3)
            tiles = [asked] * wanted + [str(label) for label in rest]
            tiles = [tiles[k] for k in random.permutation(4)]
            chosen = [int(random.choice(self.of_label[label])) for label in tiles]
            things = tuple((label, 0.25 + 0.5 * (k % 2)) for k, label in enumerate(tiles))
            self.scenes.append(Scene(things=things))
            self.draw.append(lambda path, chosen=chosen: self._mosaic(chosen, path))

    def _mosaic(self, chosen: Sequence[int], path: Path) -> Path:
        side = MOSAIC // 2
        picture = Image.new("RGB", (MOSAIC, MOSAIC))
        for k, i in enumerate(chosen):
            pixels = self.index.read(i).permute(1, 2, 0).numpy()
            tile = centre(pixels, side, np.random.default_rng(0))
            picture.paste(Image.fromarray(tile), (side * (k % 2), side * (k // 2)))
        file = path.with_name(path.name + ".png")
        save_image(picture, file)
        return file


def _scene(notes: Notes, i: int) -> Scene:
    label, _ = notes.label(i)
    note = notes.note(i) or {}
    try:
        boxes = note.get("boxes") or ()
        things = tuple((_words(b["label"]), (float(b["x0"]) + float(b["x1"])) / 2) for b in boxes)
        unsure = frozenset(map(_words, note.get("partial_labels") or ()))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ImageError(
            f"{notes.index.name(i)}: its JSON has boxes without x0, x1 and label ({error!r}); write these"
        ) from error
    return Scene(_words(label or ""), things, unsure)


def _words(label: str) -> str:
    return " ".join(label.replace("_", " ").lower().split())
