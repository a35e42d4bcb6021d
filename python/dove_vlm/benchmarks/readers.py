"""The benchmarks' official files as records, a function each.

A reader takes a `Data` and a split, and returns that split's records in the order of its file. Splits whose
answers are withheld have records without any.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from dove_vlm.benchmarks.files import Data, Row
from dove_vlm.benchmarks.records import BenchmarkError, Record

LETTERS = "ABCDEFGHIJ"
IMAGE = "-image"
"""Ends the name of a split of ScienceQA that has its questions with a picture only."""


def _vqa(data: Data, split: str, questions: Path, annotations: Path | None) -> list[Record]:
    """The VQA format: questions, and ten people's answers beside them."""
    year = "val2014" if split == "val" else "train2014" if split == "train" else "test2015"
    folder = data.folder(year)
    answered = {}
    if annotations is not None:
        answered = {row.get("question_id", (int, str)): row for row in data.list(annotations, "annotations")}
    records = []
    for row in data.list(questions, "questions"):
        number = row.get("question_id", (int, str))
        image = folder / f"COCO_{year}_{row.get('image_id', int):012d}.jpg"
        if annotations is None:
            records.append(Record(number, row.get("question", str), image))
            continue
        found = answered.get(number)
        if found is None:
            raise BenchmarkError(
                f"{str(annotations)!r} has no answer to question {number} of {str(questions)!r}; take both "
                "files of one split"
            )
        records.append(
            Record(
                number,
                row.get("question", str),
                image,
                _several(found, tuple(row.get("answer", str) for row in found.rows("answers"))),
                group=str(found.values.get("answer_type", "")) if data.benchmark == "vqav2" else "",
            )
        )
    return records


def _several(row: Row, answers: tuple[str, ...]) -> tuple[str, ...]:
    """Answers of people, which VQA accuracy compares with one another."""
    if len(answers) < 2:
        raise BenchmarkError(f"{row.name} has {len(answers)} answer where ten belong; download the file anew")
    return answers


def vqav2(data: Data, split: str) -> list[Record]:
    """VQAv2; `group` is the kind of answer: yes/no, number, other."""
    if split.startswith("test"):
        return _vqa(data, split, data.file(f"v2_OpenEnded_mscoco_{split}2015_questions.json"), None)
    questions = data.file(f"v2_OpenEnded_mscoco_{split}2014_questions.json")
    return _vqa(data, split, questions, data.file(f"v2_mscoco_{split}2014_annotations.json"))


def okvqa(data: Data, split: str) -> list[Record]:
    """OK-VQA."""
    questions = data.file(f"OpenEnded_mscoco_{split}2014_questions.json")
    return _vqa(data, split, questions, data.file(f"mscoco_{split}2014_annotations.json"))


def gqa(data: Data, split: str) -> list[Record]:
    """GQA, the balanced questions; `group` is "open" for what must be named, else "binary"."""
    name = "submission_all" if split == "submission" else f"{split}_balanced"
    path = data.file(f"{name}_questions.json")
    folder = data.folder("images", "allImages/images")
    withheld = split in ("test", "submission")
    records = []
    for number, row in data.mapping(path).items():
        group = ""
        if not withheld:
            types = Row(row.get("types", dict), row.name)
            group = "open" if types.get("structural", str) == "query" else "binary"
        answers = () if withheld else (row.get("answer", str),)
        image = folder / f"{row.get('imageId', str)}.jpg"
        records.append(Record(number, row.get("question", str), image, answers, group=group))
    return records


def textvqa(data: Data, split: str) -> list[Record]:
    """TextVQA 0.5.1. Its validation pictures lie in train_images."""
    path = data.file(f"TextVQA_0.5.1_{split}.json")
    folder = data.folder("test_images" if split == "test" else "train_images")
    return [
        Record(
            row.get("question_id", (int, str)),
            row.get("question", str),
            folder / f"{row.get('image_id', str)}.jpg",
            () if split == "test" else _several(row, row.texts("answers")),
        )
        for row in data.list(path, "data")
    ]


def docvqa(data: Data, split: str) -> list[Record]:
    """DocVQA, task 1; a row's `image` is a path such as documents/abc_1.png."""
    names = (f"{split}_v1.0.json", f"{split}_v1.0_withQT.json")
    path = data.file(*names, *(f"{split}/{name}" for name in names))
    folder = data.folder(f"{split}/documents", "documents", "spdocvqa_images")
    return _documents(data, path, split, lambda row: folder / Path(row.get("image", str)).name)


def infovqa(data: Data, split: str) -> list[Record]:
    """InfographicVQA."""
    stem = f"infographicsVQA_{split}_v1.0"
    path = data.file(f"{stem}.json", f"{stem}_withQT.json")
    folder = data.folder("images", "infographicsvqa_images", f"infographicsVQA_{split}_v1.0_images")
    return _documents(data, path, split, lambda row: folder / Path(row.get("image_local_name", str)).name)


def _documents(data: Data, path: Path, split: str, image: Callable[[Row], Path]) -> list[Record]:
    return [
        Record(
            row.get("questionId", (int, str)),
            row.get("question", str),
            image(row),
            () if split == "test" else row.texts("answers"),
        )
        for row in data.list(path, "data")
    ]


def chartqa(data: Data, split: str) -> list[Record]:
    """ChartQA; `group` is "human" or "augmented". Its rows have no number: they are named by their place."""
    folder = data.folder(f"{split}/png")
    return [
        Record(
            f"{part}-{i}",
            row.get("query", str),
            folder / Path(row.get("imgname", str)).name,
            (row.get("label", str),),
            group=part,
        )
        for part in ("human", "augmented")
        for i, row in enumerate(data.list(data.file(f"{split}/{split}_{part}.json")))
    ]


def scienceqa(data: Data, split: str) -> list[Record]:
    """ScienceQA; `group` is "image" or "text"."""
    part = split.removesuffix(IMAGE)
    problems, path = data.mapping(data.file("problems.json")), data.file("pid_splits.json")
    folder: Path | None = None
    records = []
    for number in data.texts(path, part):
        row = problems.get(number)
        if row is None:
            raise BenchmarkError(
                f"problems.json has no question {number!r} of {str(path)!r}; take both files of one release"
            )
        name = row.values.get("image")
        if not name and split.endswith(IMAGE):
            continue
        if name and folder is None:
            folder = data.folder(f"images/{part}", part)
        options, right = row.texts("choices"), row.get("answer", int)
        if not 0 <= right < len(options) <= len(LETTERS):
            raise BenchmarkError(
                f"{row.name} has answer {right} of {len(options)} choices; download the file anew"
            )
        records.append(
            Record(
                number,
                row.get("question", str),
                folder / number / row.get("image", str) if name and folder else None,
                (LETTERS[right],),
                options,
                row.values.get("hint") or "",
                "image" if name else "text",
            )
        )
    return records
