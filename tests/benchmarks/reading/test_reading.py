"""What a small language model reads in tokens: stores, runs that go on, and the table."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.reading import __main__ as program
from benchmarks.reading import report, speed, store, systems, trials
from benchmarks.reading.run import ReadingRun, evaluate
from dove_ext.errors import DoveError
from dove_ext.models.dove import DoveModel
from dove_instruct.question_data import write_questions
from dove_instruct.settings import Settings, make_settings
from dove_train.distributed import join
from tests.instruct.test_questions import classes
from tests.vlm.small import encoder

SHAPE = {"model_type": "gpt2", "n_embd": 32, "n_layer": 1, "n_head": 2, "n_positions": 128}
WIDTH = 6


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("reading")
    pictures = classes(place / "photos", 3, 0)
    write_questions(place / "data", train=[pictures], test=[pictures], at_least=2, mosaics=4, turns=3)
    return place / "data"


def names(data: Path) -> list[str]:
    return sorted(f"images/{path.name}" for path in (data / "images").iterdir())


def made(data: Path) -> store.Made:
    """Tokens of 3 to 8, of which the first half are a picture's own."""
    torch.manual_seed(0)
    for i, name in enumerate(names(data)):
        yield name, torch.randn(3 + i % 6, WIDTH), 2 + i % 3


def settings(data: Path, **changes: Any) -> Settings:
    values = {
        "text_config": SHAPE, "tokenizer": str(data / "tokenizer"), "data": [str(data / "train.json")],
        "template": "plain", "max_length": 128, "steps": 4, "global_batch": 4, "batch_size": 2, "bf16": False,
        "device": "cpu",
        "checkpoint_every": 2, "warmup_steps": 1, "learning_rate": 1e-2, "connector_learning_rate": 1e-2,
    }  # fmt: skip
    return make_settings({**values, **changes}, "recipe")


def run(data: Path, folder: Path, tokens: store.Store | None, **how: Any) -> ReadingRun:
    with join("cpu", "ddp") as world:
        changes = how.pop("settings", {})
        return ReadingRun(settings(data, **changes), folder, world, root=data, store=tokens, **how)


def test_a_store_gives_back_what_was_written(data: Path, tmp_path: Path) -> None:
    kept = store.write(tmp_path / "store", made(data))
    for name, tokens, own in made(data):
        half = tokens.half().float()
        assert kept.own(name) == own
        assert torch.equal(kept.tokens(name), half[:own])
        assert torch.equal(kept.tokens(name, 3), half[:3]) and torch.equal(kept.tokens(name, 99), half)
        for least in (1, 3, 99):  # of 1 to 4
            expected = min(max(own, least), len(half))
            assert kept.length(name, store.AtLeast(least)) == expected
            assert torch.equal(kept.tokens(name, store.AtLeast(least)), half[:expected])
    assert "images/none.png" not in kept

    def fails() -> store.Made:
        raise AssertionError("a store that is there is not made again")
        yield

    assert store.write(tmp_path / "store", fails()).width == WIDTH
    with pytest.raises(DoveError, match="are another encoder's, or of other pictures; give another -o"):
        store.write(tmp_path / "store", fails(), "other weights")


def test_a_run_that_was_stopped_goes_on(data: Path, tmp_path: Path) -> None:
    kept = store.write(tmp_path / "store", made(data))
    how = {"counts": (None, 1, 3)}
    whole = run(data, tmp_path / "whole", kept, **how)
    whole.fit()
    first = run(data, tmp_path / "part", kept, **how)
    first.start()
    while first.step < 2:
        first.take_step()
    first.save()
    rest = run(data, tmp_path / "part", kept, **how)
    rest.fit()
    assert rest.step == 4
    for (name, a), b in zip(whole.model.state_dict().items(), rest.model.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


def test_answers_do_not_depend_on_who_is_asked_beside(data: Path, tmp_path: Path) -> None:
    kept = store.write(tmp_path / "store", made(data))
    asked = run(data, tmp_path / "run", kept)
    asked.fit()
    rows = [json.loads(line) for line in (data / "test.jsonl").read_text().splitlines()]
    said, tokens = asked.answer(rows, None)
    assert said == [asked.answer([row], None)[0][0] for row in rows]
    assert tokens == pytest.approx(sum(kept.own(row["image"]) for row in rows) / len(rows))
    told = [{**row, "answer": text} for row, text in zip(rows, said, strict=True)]
    assert evaluate(asked, told, None, tmp_path / "r.json", {})["accuracy"] == 100
    wrong = evaluate(asked, [{**row, "answer": "?"} for row in told], 2, tmp_path / "r.json", {"seed": 1})
    assert (wrong["accuracy"], wrong["count"], wrong["seed"]) == (0, 2, 1)


def test_the_question_alone_sees_no_picture(data: Path, tmp_path: Path) -> None:
    blind = run(data, tmp_path / "run", None)
    assert not any(row.images for row in blind.conversations)
    blind.fit()
    rows = [
        {"image": name, "question": "what is this?", "answer": "", "kind": "what"} for name in names(data)
    ]
    said, tokens = blind.answer(rows, None)
    assert len(set(said)) == 1 and tokens == 0


def test_rows_of_tokens_that_were_asked_for_have_one_question(data: Path, tmp_path: Path) -> None:
    rows = json.loads((data / "train.json").read_text())
    pairs = [(r["image"], t["value"].replace("<image>\n", "")) for r in rows for t in r["conversations"][::2]]
    tokens = [(systems.key(*pair), torch.full((2, WIDTH), float(i)), 2) for i, pair in enumerate(pairs)]
    asked = run(data, tmp_path / "run", store.write(tmp_path / "store", tokens), asked=True)
    assert len(asked.conversations) == len(pairs)
    for i in range(6):
        row = asked.rows[i]
        number = int(row["image_tokens"][0, 0])
        text = asked.processor.tokenizer.decode(row["input_ids"])
        assert pairs[number][1] in text and row["num_image_tokens"].tolist() == [2]


# --- Who makes tokens -------------------------------------------------------------------------------------


def test_prefixes_and_own_lengths_are_the_models(data: Path, tmp_path: Path) -> None:
    model = encoder()
    kept = store.write(tmp_path / "store", systems.dove(model, data, names(data), "squash"))
    for name in names(data)[:3]:
        alone = model.encode([data / name], fit="squash")
        assert kept.own(name) == len(alone.tokens)
        assert torch.allclose(kept.tokens(name), alone.tokens, atol=2e-2)


def test_patches_are_the_picture(data: Path) -> None:
    name, rows, own = next(systems.patches(32, data, names(data), "squash"))
    assert rows.shape == (4, 3 * 16 * 16) and own == 4
    assert name == names(data)[0] and rows.min() >= -1 and rows.max() <= 1


# --- The command ------------------------------------------------------------------------------------------


def test_the_command_measures_once_and_writes_a_table(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = {"text_config": SHAPE, "max_length": 128, "template": "plain", "fit": "squash", "bf16": False}
    recipe["global_batch"] = 2
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    monkeypatch.setattr(trials, "SIDE", 32)
    for module in (program, speed):
        monkeypatch.setattr(module, "keep_freed_memory", lambda: None)
        monkeypatch.setattr(module, "let_idle_threads_sleep", lambda: None)
    monkeypatch.setattr(DoveModel, "from_pretrained", lambda *_, **__: encoder())
    chosen_recipe = ["--recipe", str(tmp_path / "recipe.yaml")]
    arguments = [
        "reading",
        str(data),
        *chosen_recipe,
        "--steps",
        "1",
        "--seeds",
        "0",
        "1",
        "-o",
        str(tmp_path / "out"),
    ]
    chosen = ["question alone", "patches", "dove-tiny, own lengths"]
    monkeypatch.setattr(sys, "argv", [*arguments, "--systems", *chosen, "--limit", "5"])
    assert program.main() == 0
    table = capsys.readouterr().out
    assert "| question alone | - | - |" in table and "| patches | own | 4.0 |" in table
    assert " ± " in table and table.rstrip().endswith("| 2 |")

    record = tmp_path / "speed.json"
    options = [
        str(data),
        *chosen_recipe,
        "--steps",
        "1",
        "-o",
        str(tmp_path / "out"),
        "--quick",
        "--questions",
        "3",
    ]
    assert speed.main([*options, "--json", str(record)]) == 0
    prefill, whole = json.loads(record.read_text())["rows"]
    assert prefill["what"] == "prefill" and set(whole["time_us"]) == set(chosen)
    rows = [json.loads(line) for line in (data / "test.jsonl").read_text().splitlines()]
    asked = [data / rows[i * len(rows) // 3]["image"] for i in range(3)]
    own = encoder().encode(asked, fit="squash").lengths.float().mean().item()
    expected = {"question alone": 0, "patches": 4, "dove-tiny, own lengths": own}
    assert whole["tokens"] == pytest.approx(expected)
    assert whole["missing"].keys() == {"dove-tiny", "dove-tiny-q", "vqgan"}
    assert speed.main([*options, "--steps", "2"]) == 1
    assert "'dove-tiny, own lengths'" in capsys.readouterr().err

    monkeypatch.setattr(sys, "argv", [*sys.argv, "--steps", "2"])
    assert program.main() == 1
    assert "is of other settings, questions or encoders than this command's" in capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", sys.argv[:-2])
    monkeypatch.setattr(ReadingRun, "fit", lambda _: pytest.fail("it was measured already"))
    assert program.main() == 0
    assert capsys.readouterr().out == table[table.index("| tokens of") :]


def test_a_folder_without_questions_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["reading", str(tmp_path / "none"), "-o", str(tmp_path / "out")])
    monkeypatch.setattr(program, "keep_freed_memory", lambda: None)
    assert program.main() == 1
    assert "dove vlm questions" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_vqgan_must_be_given(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    monkeypatch.setattr(sys, "argv", ["reading", str(data), "--systems", "vqgan", "-o", str(out)])
    monkeypatch.setattr(program, "keep_freed_memory", lambda: None)
    assert program.main() == 1
    assert "needs --vqgan" in capsys.readouterr().err
    assert not out.exists()


def test_every_row_of_a_system_is_a_row_of_its_own() -> None:
    for system in trials.SYSTEMS.values():
        assert len(set(system.tested)) == len(system.tested) == len({str(n) for n in system.tested})


def test_the_table_has_means_over_seeds(tmp_path: Path) -> None:
    for seed, right in ((0, 50.0), (1, 54.0)):
        for count, tokens in ((8, 8.0), ("own", 20.5), (64, 64.0)):
            result = {"system": "dove-tiny", "count": count, "tokens": tokens, "accuracy": right,
                      "kinds": {"is": right, "what": 10.0}, "seed": seed}  # fmt: skip
            (tmp_path / f"{count}-{seed}.json").write_text(json.dumps(result))
    lines = report.table(tmp_path).splitlines()
    assert lines[2] == "| dove-tiny | 8 | 8.0 | 52.0 ± 2.8 | 52.0 ± 2.8 | 10.0 ± 0.0 | 2 |"
    assert [line.split(" | ")[1] for line in lines[2:]] == ["8", "64", "own"]
