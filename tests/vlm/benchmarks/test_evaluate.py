"""From answers to scores, tables and submissions; any function answers."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from dove_vlm.benchmarks import BENCHMARKS, BenchmarkError, Record, Result, evaluate, read_records
from dove_vlm.benchmarks.evaluate import table
from dove_vlm.benchmarks.submission import entries, write_submission
from tests.vlm.benchmarks.layouts import LAYOUTS


def right(records: list[Record]) -> list[str]:
    """What most people say."""
    return [max(record.answers, key=record.answers.count) for record in records]


def made(benchmark: str, score: float | None, **facts: object) -> Result:
    return Result(benchmark, "val", "accuracy", 2, score, {}, [(1, "a"), (2, "b")], **facts)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", LAYOUTS)
def test_right_answers_score_100_and_wrong_ones_0(name: str, tmp_path: Path) -> None:
    records = read_records(name, LAYOUTS[name](tmp_path))
    result = evaluate(name, records, right)
    assert result.score == pytest.approx(100) and result.questions == len(records)
    assert all(score == pytest.approx(100) for score, _ in result.groups.values())
    assert (result.metric, result.split) == (BENCHMARKS[name].metric, BENCHMARKS[name].splits[0])
    assert evaluate(name, records, lambda batch: ["zebras"] * len(batch)).score == 0


def test_parts_are_scored_apart(tmp_path: Path) -> None:
    def answers(batch: list[Record]) -> list[str]:
        return [{"14": "14.5", "Brazil": "brasil", "57": "58"}[record.answers[0]] for record in batch]

    result = evaluate("chartqa", read_records("chartqa", LAYOUTS["chartqa"](tmp_path)), answers)
    assert result.score == pytest.approx(200 / 3)
    assert result.groups == {"augmented": (100.0, 1), "human": (50.0, 2)}


def test_scienceqa_of_pictures_and_texts(tmp_path: Path) -> None:
    records = read_records("scienceqa", LAYOUTS["scienceqa"](tmp_path), "test")
    result = evaluate("scienceqa", records, lambda batch: ["B. Mars"] * len(batch), split="test")
    assert result.groups == {"image": (100.0, 1), "text": (0.0, 1)} and result.score == 50


def test_the_model_gets_batches_in_order(tmp_path: Path) -> None:
    records = [Record(i, f"Is it {i}?", None, ("yes",)) for i in range(7)]
    sizes = []

    def answer(batch: list[Record]) -> list[str]:
        sizes.append(len(batch))
        return ["yes" if int(record.question_id) % 2 else "no" for record in batch]

    result = evaluate("gqa", records, answer, batch_size=3)
    assert sizes == [3, 3, 1] and [number for number, _ in result.answers] == list(range(7))
    assert result.score == pytest.approx(300 / 7)


def test_what_cannot_be_scored_is_refused() -> None:
    records = [Record(1, "?", None, ("yes",)), Record(2, "?", None)]
    with pytest.raises(BenchmarkError, match="no questions of gqa"):
        evaluate("gqa", [], right)
    with pytest.raises(BenchmarkError, match="1 of 2 records of gqa have no answers"):
        evaluate("gqa", records, right)
    with pytest.raises(BenchmarkError, match="gave 2 answers to 1 questions"):
        evaluate("gqa", records[:1], lambda batch: ["yes", "no"])


def test_a_result_survives_its_file(tmp_path: Path) -> None:
    result = made("gqa", 51.25, num_tokens="64", mean_tokens=64.0, model="m")
    result.save(tmp_path / "r.json")
    assert Result.load(tmp_path / "r.json") == result
    (tmp_path / "other.json").write_text('{"benchmark": "gqa"}')
    with pytest.raises(BenchmarkError, match=r"other\.json' is no result"):
        Result.load(tmp_path / "other.json")


def test_table_3() -> None:
    results = [
        made("gqa", 1.0, num_tokens="256", model="dove"),  # replaced below
        made("gqa", 51.84, num_tokens="256", model="dove"),
        made("vqav2", 52.2, mean_tokens=121.63, model="dove"),
        made("gqa", 47.2, num_tokens="32", model="dove"),
        made("docvqa", None, num_tokens="32", model="dove"),
        replace(made("gqa", 44.0, num_tokens="32", model="dove"), split="testdev"),
        made("vqav2", 55.0, num_tokens="256", model="dove-q", query="null"),
        made("vqav2", 53.9, num_tokens="256", model="dove-q", query="question", sample=True),
    ]
    assert table(results).splitlines() == [
        "| Model | Tokens | VQAv2 | GQA | GQA testdev |",
        "| --- | ---: | ---: | ---: | ---: |",
        "| dove | 32 |  | 47.2 | 44.0 |",
        "| dove | 256 |  | 51.8 |  |",
        "| dove | own | 52.2 (121.6) |  |  |",
        "| dove-q | 256# | 55.0 |  |  |",
        "| dove-q (asked the question) | 256 | 53.9~ |  |  |",
    ]


@pytest.mark.parametrize(
    ("name", "split", "expected"),
    [
        (
            "vqav2",
            "test-dev",  # the server wants all test questions
            [
                {"question_id": 2000, "answer": "2 dogs"},
                {"question_id": 1000, "answer": ""},
                {"question_id": 3000, "answer": ""},
            ],
        ),
        ("gqa", "submission", [{"questionId": "7", "prediction": "the two dogs"}]),
        ("textvqa", "test", [{"question_id": 9, "answer": "2 dogs"}]),
        ("docvqa", "test", [{"questionId": 57344, "answer": "The two dogs."}]),
        ("infovqa", "test", [{"questionId": 5, "answer": "The two dogs."}]),
    ],
)
def test_submissions(name: str, split: str, expected: list[dict[str, object]], tmp_path: Path) -> None:
    records = read_records(name, LAYOUTS[name](tmp_path), split)
    result = evaluate(name, records, lambda batch: [" The two dogs.\n"] * len(batch), split=split)
    assert result.score is None and result.groups == {}
    write_submission(tmp_path / "s.json", entries(name, split, result.answers, tmp_path))
    assert json.loads((tmp_path / "s.json").read_text()) == expected


def test_what_is_not_withheld_is_not_submitted(tmp_path: Path) -> None:
    with pytest.raises(BenchmarkError, match="okvqa publishes its answers of val"):
        entries("okvqa", "val", [], tmp_path)
    LAYOUTS["vqav2"](tmp_path)
    (tmp_path / "v2_OpenEnded_mscoco_test2015_questions.json").unlink()
    with pytest.raises(BenchmarkError, match="lacks v2_OpenEnded_mscoco_test2015"):
        entries("vqav2", "test-dev", [(2000, "a")], tmp_path)
