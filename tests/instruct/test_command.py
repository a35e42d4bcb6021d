"""The recipe that ships takes a step here, with a small language model; and what the command line refuses."""

from __future__ import annotations

import json
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig

from dove_instruct import cli
from dove_instruct.settings import Settings, make_settings
from dove_train.settings import TrainingError, read_recipe
from tests.instruct.small import TEXT_CONFIG, log, recipe, write_files

ROOT = Path(__file__).parents[2]
RECIPE = ROOT / "recipes" / "vicuna-7b-dove.yaml"


def parse(*arguments: Any) -> Namespace:
    parser = ArgumentParser()
    cli.configure(parser)
    return parser.parse_args([str(argument) for argument in arguments])


@pytest.mark.parametrize("name", ["vicuna-7b-dove", "small-vlm", "small-vlm-rotary"])
def test_recipes_can_be_read(name: str) -> None:
    values = {**read_recipe(ROOT / "recipes" / f"{name}.yaml"), "data": ["x"]}
    s = make_settings({**values, "tokenizer": "x"} if "text_config" in values else values, "recipe")
    if s.text_config:
        made = AutoConfig.for_model(**s.text_config)
        assert made.hidden_size == 128 and made.max_position_embeddings == 512


def test_another_language_model_takes_the_place_of_the_recipes(tmp_path: Path) -> None:
    folder = RECIPE.parent
    for name in ("vicuna-7b-dove", "small-vlm", "small-vlm-rotary"):
        place = ("train", folder / f"{name}.yaml", "-o", tmp_path, "--data", "x")
        new = cli.settings_of(parse(*place, "--text-config", "{model_type: llama}", "--tokenizer", "t"))
        assert (new.language_model, new.text_config, new.start_from) == ("", {"model_type": "llama"}, "")
        on = cli.settings_of(parse(*place, "--start-from", "model"))
        assert (on.language_model, on.text_config, on.start_from) == ("", {}, "model")
    with pytest.raises(TrainingError, match="start_from, not language_model and start_from"):
        cli.settings_of(parse(*place, "--start-from", "model", "--language-model", "x"))


def test_the_recipe_is_table_8() -> None:
    s = make_settings({**read_recipe(RECIPE), "data": ["x"]}, "recipe")
    assert (s.learning_rate, s.connector_learning_rate, s.weight_decay, s.clip) == (2e-5, 2e-4, 0.01, 1.0)
    assert (s.global_batch, s.warmup_steps, s.steps, s.fit) == (8, 250, 5000, "pad")
    for name in ("learning_rate", "connector_learning_rate", "steps", "global_batch", "warmup_steps", "clip"):
        assert getattr(s, name) == getattr(Settings(), name), name


def test_it_takes_a_step_with_two_layers_of_llama(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = write_files(tmp_path / "files")
    rows = [{"image": "examples/photos/cat.jpg", "question": "what is this ?", "answer": "a cat"}] * 2
    (files / "llava.json").write_text(json.dumps(rows))
    changed = {**read_recipe(RECIPE), "text_config": TEXT_CONFIG, "language_model": ""}
    (files / "recipe.yaml").write_text(json.dumps(changed))
    places = ["-o", tmp_path / "run", "--data", files / "llava.json", "--images", ROOT]
    changes = ["--tokenizer", files / "tokenizer", "--steps", 1, "--global-batch", 2]
    args = parse("train", files / "recipe.yaml", *places, *changes, "--lengths", "{max_tokens: 20}")
    assert cli.run(args) == 0
    assert f"the model is in {tmp_path / 'run' / 'model'}" in capsys.readouterr().out
    assert log(tmp_path / "run")[0]["image tokens"] == 20


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"data": []}, "there is no data"),
        ({"text_config": {}}, "give one of language_model"),
        ({"language_model": "x"}, "give one of language_model"),
        ({"tokenizer": ""}, "a new language model needs a tokenizer"),
        ({"learning_rat": 1}, "no setting 'learning_rat'; did you mean 'learning_rate'"),
        ({"steps": "many"}, "steps must be a whole number"),
        ({"steps": 0}, "steps must be at least 1"),
        ({"clip": 0.0}, "clip must be above 0"),
        ({"fit": "stretch"}, "fit must be 'pad' or 'crop' or 'squash'"),
        ({"lengths": {"budget": 3}}, "'budget' is none of these"),
        ({"train_encoder": True, "ask": True}, "a trained encoder cannot go with ask"),
        ({"train_encoder": True, "parallel": "fsdp2"}, "a trained encoder cannot go with parallel: fsdp2"),
    ],
)
def test_settings_that_are_refused(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(TrainingError, match=sentence):
        make_settings({**recipe(Path("files")), **changes}, "recipe")


def test_parts_that_are_not_there(tmp_path: Path) -> None:
    from dove_ext import CheckpointError
    from tests.instruct.small import run

    files = write_files(tmp_path)
    with pytest.raises(TrainingError, match="lengths cannot be used: num_tokens must be between 1 and 64"):
        run(files, tmp_path, lengths={"num_tokens": 65})
    with pytest.raises(TrainingError, match="the language model or its tokenizer cannot be used"):
        run(files, tmp_path / "a", tokenizer=str(tmp_path / "nothing"))
    with pytest.raises(CheckpointError, match="there is no model at 'dove-tinny'"):
        run(files, tmp_path / "a", encoder="dove-tinny")
    with pytest.raises(TrainingError, match="cannot be used"):
        run(files, tmp_path / "a", text_config={"model_type": "lama"})


def test_ask_needs_an_encoder_with_queries(tmp_path: Path) -> None:
    from tests.instruct.small import run

    files = write_files(tmp_path)
    with pytest.raises(TrainingError, match="reads no queries; leave ask out"):
        run(files, tmp_path / "a", ask=True)
