"""`dove vlm eval`: what it asks a model, and what it writes."""

from __future__ import annotations

import json
from argparse import ArgumentParser
from pathlib import Path

import pytest

from dove_ext.cli.command import UsageError
from dove_vlm.benchmarks import BenchmarkError, find_benchmark, generate, read_records
from dove_vlm.benchmarks.generate import Model, answerer
from dove_vlm.cli import command
from tests.vlm.benchmarks.layouts import LAYOUTS
from tests.vlm.benchmarks.stand_in import StandIn


def dove(*arguments: object) -> int:
    parser = ArgumentParser()
    command.configure(parser)
    args = parser.parse_args([str(a) for a in arguments])
    return args.run(args)


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> StandIn:
    made = StandIn({"What is it": "Traffic light.", "Is it on": "yes"})
    monkeypatch.setattr(generate, "load", lambda folder, device, dtype: (made, made))
    return made


def test_it_scores_lengths_and_writes_the_table(
    model: StandIn, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, out = LAYOUTS["gqa"](tmp_path / "data"), tmp_path / "out"
    assert dove("--benchmark", "gqa", "--data", data, "--model", "runs/m", "-o", out,
                "--num-tokens", 8, "own", "8") == 0  # fmt: skip
    first, second = capsys.readouterr().out.splitlines()
    assert first == (
        "gqa val, 2 questions, 8.0 tokens an image: accuracy 50.0% (binary 0.0 of 1, open 100.0 of 1)"
    )
    assert second.startswith("gqa val, 2 questions, 10.5 tokens an image: accuracy 50.0%")
    assert model.prompts[0] == "<image>\nWhat is it?\n" + find_benchmark("gqa").suffix + "\n"
    assert [options.get("num_tokens") for _, options in model.calls] == [8, None]
    assert model.generated[0] == {"do_sample": False, "num_beams": 1, "max_new_tokens": 16}
    assert sorted(path.name for path in out.iterdir()) == [
        "gqa-val-runs_m-8.json",
        "gqa-val-runs_m-own.json",
        "table.md",
    ]
    written = json.loads((out / "gqa-val-runs_m-8.json").read_text())
    assert written["answers"] == [["20", "Traffic light."], ["03", "yes"]] and written["mean_tokens"] == 8
    dove(
        "--benchmark",
        "scienceqa",
        "--data",
        LAYOUTS["scienceqa"](tmp_path / "s"),
        "--model",
        "runs/m",
        "-o",
        out,
    )
    assert (out / "table.md").read_text().splitlines()[2:] == [
        "| runs/m | 8 | 50.0 |  |",
        "| runs/m | own | 50.0 (10.5) | 0.0 (10.0) |",
    ]


def test_submissions_of_withheld_answers(
    model: StandIn, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, out = LAYOUTS["docvqa"](tmp_path / "data"), tmp_path / "out"
    assert dove("--benchmark", "docvqa", "--data", data, "--model", "m", "-o", out, "--split", "test") == 0
    assert "answers are withheld, the file for the server is in submissions/" in capsys.readouterr().out
    rows = json.loads((out / "submissions" / "docvqa-test-m-own.json").read_text())
    assert rows == [{"questionId": 57344, "answer": "Traffic light."}]
    assert model.generated[0]["max_new_tokens"] == 32


def test_json_and_a_sample(model: StandIn, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = LAYOUTS["gqa"](tmp_path / "data")
    dove("--benchmark", "gqa", "--data", data, "--model", "m", "-o", tmp_path / "o", "--limit", 1, "--json")
    (result,) = json.loads(capsys.readouterr().out)
    assert result["questions"] == 1 and result["sample"] and result["score"] == 100
    assert "100.0~" in (tmp_path / "o" / "table.md").read_text()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (["--split", "dev"], UsageError, "gqa has no split 'dev'"),
        (["--split", "submission", "--limit", "1"], UsageError, "leave --limit out"),
        (["--num-tokens", "65"], BenchmarkError, "--num-tokens 65 is impossible: the model has 1 to 64"),
        (["--device", "abacus"], UsageError, "abacus"),
    ],
)
def test_wrong_options(
    options: list[str], error: type[Exception], message: str, model: StandIn, tmp_path: Path
) -> None:
    data = LAYOUTS["gqa"](tmp_path / "data")
    with pytest.raises(error, match=message):
        dove("--benchmark", "gqa", "--data", data, "--model", "m", "-o", tmp_path / "o", *options)
    assert not list((tmp_path).glob("o/*.*"))


def test_other_models_have_no_lengths_to_choose() -> None:
    with pytest.raises(BenchmarkError, match="fixed number of tokens, 8 cannot be asked for"):
        Model(StandIn({}, slots=None), StandIn({}), 8)


@pytest.mark.parametrize(
    ("query", "expected"), [("question", ["Which is a planet?"]), ("null", "null"), (None, None)]
)
def test_queries_and_questions_without_a_picture(query: str | None, expected: object, tmp_path: Path) -> None:
    records = read_records("scienceqa", LAYOUTS["scienceqa"](tmp_path), "test")
    made = StandIn({"Sun": "B", "maybe": "A"}, template=True)
    model = Model(made, made)
    ask = answerer(model, find_benchmark("scienceqa"), query)
    assert ask(records) == ["B", "A"]
    images, options = made.calls[0]
    assert [len(row) for row in images] == [1, 0] and options.get("query") == expected
    assert made.prompts[0].startswith("USER: <image>|Context: Look at the sky.\nWhich is a planet?\nA. Sun")
    assert made.prompts[1].startswith("USER: Which is a planet?\nA. yes")
    ask(records[1:])
    assert made.calls[1][0] is None and "query" not in made.calls[1][1] and model.counted == [10]
