"""Files for the servers that hold withheld answers."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dove_ext.atomic import atomic_write
from dove_vlm.benchmarks.records import BenchmarkError
from dove_vlm.benchmarks.registry import find_benchmark

WHOLE = "v2_OpenEnded_mscoco_test2015_questions.json"
"""VQAv2's server wants an answer to each of these, also where only test-dev is scored."""


def entries(
    benchmark: str, split: str, answers: Sequence[tuple[int | str, str]], root: str | os.PathLike[str]
) -> list[dict[str, Any]]:
    """What the server of a benchmark reads.

    VQAv2 and TextVQA: `{"question_id", "answer"}`, normalised; DocVQA and InfoVQA: `{"questionId", "answer"}`
    as the model put them; GQA: `{"questionId", "prediction"}`, in lower case without a final period. With
    VQAv2's test-dev all other test questions are answered, too, with "".

    Args:
        benchmark: its name.
        split: likewise.
        answers: `Result.answers`.
        root: the benchmark's folder.

    Raises:
        BenchmarkError: if the benchmark has no server, or VQAv2's test2015 questions are missing.
    """
    found = find_benchmark(benchmark)
    if found.entry is None or split not in found.withheld:
        raise BenchmarkError(f"{benchmark} publishes its answers of {split}; there is nothing to submit")
    made = [found.entry(number, answer.strip()) for number, answer in answers]
    if (benchmark, split) != ("vqav2", "test-dev"):
        return made
    data = found.data(root)
    known = {number for number, _ in answers}
    for row in data.list(data.file(WHOLE), "questions"):
        number = row.get("question_id", (int, str))
        if number not in known:
            made.append({"question_id": number, "answer": ""})
    return made


def write_submission(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write a submission, whole or not at all.

    Raises:
        OutputError: if the file cannot be written.
    """
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(rows, ensure_ascii=False) + "\n", encoding="utf-8")
