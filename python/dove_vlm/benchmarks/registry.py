"""The eight benchmarks of Table 3 by name: files, splits, prompt (B.2), metric, submission."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dove_vlm.benchmarks import readers
from dove_vlm.benchmarks.files import Data
from dove_vlm.benchmarks.metrics import (
    anls,
    exact_match,
    gqa_form,
    option_letter,
    relaxed_accuracy,
    vqa_accuracy,
)
from dove_vlm.benchmarks.normalise import normalise_textvqa, normalise_vqa
from dove_vlm.benchmarks.readers import IMAGE, LETTERS
from dove_vlm.benchmarks.records import BenchmarkError, Record

PHRASE = "Answer the question using a single word or phrase."
LETTER = "Answer with the option's letter from the given choices directly."


@dataclass(frozen=True)
class Benchmark:
    """What there is to know of a benchmark.

    Attributes:
        name: on the command line and in files.
        title: in tables.
        metric: what its score is called.
        score: an answer and its record to 0..1.
        read: its reader.
        splits: their names; the first is the default.
        withheld: those of them whose answers are not public.
        home: where its files are to be had.
        max_new_tokens: an answer's length, as lmms-eval limits it.
        places: folders in its folder where files may lie.
        suffix: what follows a question in a prompt.
        entry: an answer of a submission, from `question_id` and the text.
    """

    name: str
    title: str
    metric: str
    score: Callable[[str, Record], float]
    read: Callable[[Data, str], list[Record]]
    splits: tuple[str, ...]
    home: str
    withheld: tuple[str, ...] = ()
    max_new_tokens: int = 16
    places: tuple[str, ...] = ()
    suffix: str = PHRASE
    entry: Callable[[int | str, str], dict[str, Any]] | None = None

    def data(self, root: str | os.PathLike[str]) -> Data:
        """Its folder."""
        return Data(Path(root), self.name, self.home, self.places)

    def split(self, name: str | None) -> str:
        """A split's name, or the default's.

        Raises:
            BenchmarkError: if there is none of that name.
        """
        if name is None:
            return self.splits[0]
        if name not in self.splits:
            raise BenchmarkError(f"{self.name} has no split {name!r}; choose one of {', '.join(self.splits)}")
        return name

    def prompt(self, record: Record) -> str:
        """What a model is asked, as LLaVA-1.5 is: question, choices, suffix; without an image's place."""
        lines = [f"Context: {record.hint}"] if record.hint else []
        lines.append(record.question)
        lines += [f"{letter}. {option}" for letter, option in zip(LETTERS, record.options, strict=False)]
        return "\n".join([*lines, self.suffix])


def _people(normalise: Callable[[str], str]) -> Callable[[str, Record], float]:
    return lambda answer, record: vqa_accuracy(answer, record.answers, normalise)


def _letter(answer: str, record: Record) -> float:
    return float(option_letter(answer, len(record.options)) == record.answers[0])


def _document_entry(number: int | str, answer: str) -> dict[str, Any]:
    return {"questionId": int(number), "answer": answer}


def _similar(answer: str, record: Record) -> float:
    return anls(answer, record.answers)


_COCO = ("images", "coco", "questions", "annotations")
_DOCUMENTS = "https://rrc.cvc.uab.es/?ch=17"

BENCHMARKS: Mapping[str, Benchmark] = {
    benchmark.name: benchmark
    for benchmark in (
        Benchmark(
            "vqav2",
            "VQAv2",
            "VQA accuracy",
            _people(normalise_vqa),
            readers.vqav2,
            ("val", "test-dev", "test", "train"),
            "https://visualqa.org/download.html",
            withheld=("test-dev", "test"),
            places=_COCO,
            entry=lambda number, answer: {"question_id": number, "answer": normalise_vqa(answer)},
        ),
        Benchmark(
            "gqa",
            "GQA",
            "accuracy",
            lambda answer, record: exact_match(answer, record.answers[0]),
            readers.gqa,
            ("val", "testdev", "test", "submission", "train"),
            "https://cs.stanford.edu/people/dorarad/gqa/download.html",
            withheld=("test", "submission"),
            places=("questions", "questions1.2"),
            entry=lambda number, answer: {"questionId": str(number), "prediction": gqa_form(answer)},
        ),
        Benchmark(
            "okvqa",
            "OKVQA",
            "VQA accuracy",
            _people(normalise_vqa),
            readers.okvqa,
            ("val", "train"),
            "https://okvqa.allenai.org/download.html",
            places=_COCO,
        ),
        Benchmark(
            "textvqa",
            "TextVQA",
            "VQA accuracy",
            _people(normalise_textvqa),
            readers.textvqa,
            ("val", "test", "train"),
            "https://textvqa.org/dataset/",
            withheld=("test",),
            places=("train_val_images",),
            entry=lambda number, answer: {"question_id": number, "answer": normalise_textvqa(answer)},
        ),
        Benchmark(
            "docvqa",
            "DocVQA",
            "ANLS",
            _similar,
            readers.docvqa,
            ("val", "test", "train"),
            _DOCUMENTS,
            withheld=("test",),
            max_new_tokens=32,
            places=("spdocvqa_qas",),
            entry=_document_entry,
        ),
        Benchmark(
            "infovqa",
            "InfoVQA",
            "ANLS",
            _similar,
            readers.infovqa,
            ("val", "test", "train"),
            _DOCUMENTS,
            withheld=("test",),
            max_new_tokens=32,
            places=("infographicsvqa_qas",),
            entry=_document_entry,
        ),
        Benchmark(
            "chartqa",
            "ChartQA",
            "relaxed accuracy",
            lambda answer, record: relaxed_accuracy(answer, record.answers[0]),
            readers.chartqa,
            ("test", "val", "train"),
            "https://github.com/vis-nlp/ChartQA",
            places=("ChartQA Dataset",),
        ),
        Benchmark(
            "scienceqa",
            "ScienceQA",
            "accuracy",
            _letter,
            readers.scienceqa,
            (f"test{IMAGE}", "test", f"val{IMAGE}", "val", f"train{IMAGE}", "train"),
            "https://scienceqa.github.io",
            places=("data/scienceqa",),
            suffix=LETTER,
        ),
    )
}


def find_benchmark(name: str) -> Benchmark:
    """A benchmark by its name.

    Raises:
        BenchmarkError: if there is none.
    """
    if name not in BENCHMARKS:
        raise BenchmarkError(f"there is no benchmark {name!r}; choose one of {', '.join(BENCHMARKS)}")
    return BENCHMARKS[name]


def read_records(name: str, root: str | os.PathLike[str], split: str | None = None) -> list[Record]:
    """The questions of a benchmark.

    Args:
        name: one of `BENCHMARKS`.
        root: the folder with its official files, see docs/vlm_benchmarks.md.
        split: None: its first.

    Returns:
        list[Record]: in the order of its files. Of splits whose answers are withheld they have none.

    Raises:
        BenchmarkError: naming the file or field that is missing, and where it is to be had.
    """
    benchmark = find_benchmark(name)
    return benchmark.read(benchmark.data(root), benchmark.split(split))
