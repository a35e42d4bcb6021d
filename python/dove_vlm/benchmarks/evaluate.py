"""Ask a model everything, and score what it says; which model is a function's business."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dove_ext.atomic import atomic_write
from dove_ext.progress import progress
from dove_vlm.benchmarks.files import read_json
from dove_vlm.benchmarks.records import BenchmarkError, Record
from dove_vlm.benchmarks.registry import BENCHMARKS, find_benchmark

OWN = "own"
"""The name of lengths that the model chooses."""

Answer = Callable[[list[Record]], list[str]]


@dataclass(frozen=True)
class Result:
    """What a model scored.

    Attributes:
        benchmark: its name.
        split: likewise.
        metric: what `score` is.
        questions: how many were asked.
        score: percent; None where answers are withheld.
        groups: percent and number of questions of each part that the benchmark reports apart.
        answers: `[question_id, answer]` in the order of the questions, as the model put them.
        num_tokens: how many tokens an image had: a number, or "own".
        mean_tokens: how many it had on average; None if nobody counted.
        model: the model's name.
        query: what a Q-DOVE encoder was asked: "question", "null", or "" for nothing.
        sample: whether these are some of the benchmark's questions only.
    """

    benchmark: str
    split: str
    metric: str
    questions: int
    score: float | None
    groups: dict[str, tuple[float, int]]
    answers: list[tuple[int | str, str]]
    num_tokens: str = OWN
    mean_tokens: float | None = None
    model: str = ""
    query: str = ""
    sample: bool = False

    def save(self, path: Path) -> None:
        """Write it as JSON.

        Raises:
            OutputError: if the file cannot be written.
        """
        with atomic_write(path) as temporary:
            temporary.write_text(json.dumps(asdict(self), ensure_ascii=False) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> Result:
        """Read what `save` wrote.

        Raises:
            BenchmarkError: if it is something else.
        """
        found = read_json(path)
        try:
            groups = {name: (score, count) for name, (score, count) in found["groups"].items()}
            answers = [(number, text) for number, text in found["answers"]]
            return cls(**{**found, "groups": groups, "answers": answers})
        except (TypeError, KeyError, ValueError, AttributeError) as error:
            raise BenchmarkError(f"{str(path)!r} is no result of `dove vlm eval`; move it away") from error


def evaluate(
    benchmark: str,
    records: Sequence[Record],
    answer: Answer,
    *,
    split: str | None = None,
    batch_size: int = 16,
    **facts: Any,
) -> Result:
    """Ask a model all questions, and score its answers by the benchmark's rule.

    Args:
        benchmark: one of `BENCHMARKS`.
        records: its questions, from `read_records`.
        answer: gets at most `batch_size` records, and returns as many texts.
        split: where the records are from; None: the benchmark's first.
        batch_size: how many it gets at once.
        **facts: `num_tokens`, `model`, `query`, `sample` of the `Result`.

    Returns:
        Result: with percentages. Parts of the benchmark (`Record.group`) are scored apart, too.

    Raises:
        BenchmarkError: if there are no records, only some have answers, or `answer` returns another number.
    """
    found, split = find_benchmark(benchmark), find_benchmark(benchmark).split(split)
    if not records:
        raise BenchmarkError(f"there are no questions of {benchmark}; give some")
    answered = sum(bool(record.answers) for record in records)
    if 0 < answered < len(records):
        raise BenchmarkError(
            f"{len(records) - answered} of {len(records)} records of {benchmark} have no answers; score "
            "the others apart"
        )
    texts: list[str] = []
    with progress(len(records), benchmark) as bar:
        for start in range(0, len(records), batch_size):
            batch = list(records[start : start + batch_size])
            said = answer(batch)
            if len(said) != len(batch):
                raise BenchmarkError(
                    f"the model gave {len(said)} answers to {len(batch)} questions; return one a record"
                )
            texts += said
            bar.update(len(batch))
    groups: dict[str, list[float]] = {"": []}
    if answered:
        for text, record in zip(texts, records, strict=True):
            score = 100 * found.score(text, record)
            groups[""].append(score)
            if record.group:
                groups.setdefault(record.group, []).append(score)
    overall = groups.pop("")
    return Result(
        benchmark,
        split,
        found.metric,
        len(records),
        _mean(overall) if overall else None,
        {name: (_mean(scores), len(scores)) for name, scores in sorted(groups.items())},
        [(record.question_id, text) for record, text in zip(records, texts, strict=True)],
        **facts,
    )


def _mean(scores: Sequence[float]) -> float:
    return sum(scores) / len(scores)


def table(results: Sequence[Result]) -> str:
    """The paper's Table 3 in Markdown: a row a model and number of tokens, a column a benchmark and split.

    Own lengths have the mean number of tokens in brackets; "#" is a row whose encoder was asked "null"; "~"
    stands behind a score of some of the questions only. Of two results for one place the last counts.
    """
    cells = {(*_row(r), (r.benchmark, r.split)): r for r in results if r.score is not None}
    known = [(name, split) for name, benchmark in BENCHMARKS.items() for split in benchmark.splits]
    columns = [column for column in known if any(key[2] == column for key in cells)]
    rows = sorted({key[:2] for key in cells}, key=lambda row: (row[0], *_order(row[1])))
    lines = [
        ["Model", "Tokens", *(_title(*column) for column in columns)],
        ["---", *["---:"] * (len(columns) + 1)],
    ]
    lines += [[*row, *(_cell(cells.get((*row, column))) for column in columns)] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def _title(benchmark: str, split: str) -> str:
    found = BENCHMARKS[benchmark]
    return found.title if split == found.splits[0] else f"{found.title} {split}"


def _row(result: Result) -> tuple[str, str]:
    asked = {"question": " (asked the question)", "null": "", "": ""}[result.query]
    model = result.model.replace("|", "\\|") + asked
    return model, result.num_tokens + ("#" if result.query == "null" else "")


def _cell(result: Result | None) -> str:
    if result is None or result.score is None:
        return ""
    score = f"{result.score:.1f}" + ("~" if result.sample else "")
    counted = result.num_tokens == OWN and result.mean_tokens is not None
    return f"{score} ({result.mean_tokens:.1f})" if counted else score


def _order(tokens: str) -> tuple[int, str]:
    number = tokens.rstrip("#")
    return (int(number) if number.isdecimal() else 1 << 30, tokens)
