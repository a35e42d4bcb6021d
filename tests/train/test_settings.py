"""Recipes, what the command line changes in them, and the sentence for each mistake."""

from __future__ import annotations

import re
from argparse import ArgumentParser
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from dove_train.cli import configure, settings_of
from dove_train.settings import _CONSTANTS, Settings, Stage, TrainingError, make_settings, read_recipe
from tests.train.small import recipe

TEXT = "preset: dove-tiny\ngan_weight: 5e-10\nstages:\n  joint: {steps: 7, train: [head]}\n"


def parsed(tmp_path: Path, *arguments: str, text: str = TEXT) -> Settings:
    file = tmp_path / "recipe.yaml"
    file.write_text(text)
    parser = ArgumentParser()
    configure(parser)
    return settings_of(parser.parse_args([str(file), "-o", str(tmp_path / "run"), *arguments]))


PATHS = ("--data", "a", "b", "--validation", "c")


def test_recipe_and_command_line(tmp_path: Path) -> None:
    settings = parsed(
        tmp_path, *PATHS, "--batch-size", "3", "--bf16", "false", "--name", "7", "--learning-rate", "2e-3",
        "--shape", "vocab_size=50304", "vqgan.latent_channels=64", "--stage", "joint.steps=9",
    )  # fmt: skip
    assert settings.gan_weight == 5e-10  # YAML 1.1 would read text
    assert settings.data == ["a", "b"] and settings.validation == ["c"]
    assert (settings.batch_size, settings.bf16, settings.name) == (3, False, "7")
    assert settings.learning_rate == 2e-3
    assert settings.shape == {"vocab_size": 50304, "vqgan": {"latent_channels": 64}}
    assert settings.stages["joint"].steps == 9


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--data", "a"), "there is no validation: give --validation image folders or tar shards"),
        ((*PATHS, "--batch-size", "many"), r"batch_size must be a whole number, got 'many'"),
        ((*PATHS, "--shape", "vocab_size"), "--shape takes FIELD=VALUE, got 'vocab_size'"),
        ((*PATHS, "--stage", "warm.steps=3"), r"--stage warm.steps=3: the recipe's stages are joint"),
        (
            (*PATHS, "--shape", "multipliers=[1,"),
            "--shape multipliers: '[1,' is not a YAML value; quote what",
        ),
        ((*PATHS, "--clip", "[1,"), "--clip: '[1,' is not a YAML value"),
        ((*PATHS, "--stage", "joint.steps.x=3"), "--stage joint.steps.x=3: 'steps' has no fields, it is 7"),
        ((*PATHS, "--stage", "joint.step=3"), "stage 'joint' has no setting 'step'; did you mean 'steps'?"),
    ],
)
def test_wrong_command_lines(tmp_path: Path, arguments: tuple[str, ...], sentence: str) -> None:
    with pytest.raises(TrainingError) as caught:
        parsed(tmp_path, *arguments)
    assert sentence in str(caught.value)


def test_queries_take_the_place_of_data(tmp_path: Path) -> None:
    text = "preset: dove-base-q\nstages: {q: {steps: 1, path: query, train: [query]}}\n"
    settings = parsed(tmp_path, "--queries", "a", "visual-genome:b", "--validation", "c", text=text)
    assert settings.queries == ["a", "visual-genome:b"] and settings.asks
    with pytest.raises(TrainingError, match="there are no queries: give --queries tar shards with boxes"):
        parsed(tmp_path, "--validation", "c", text=text)
    with pytest.raises(TrainingError, match="there is no data: give --data"):
        parsed(tmp_path, "--validation", "c", "--mosaics", "1", text=text)
    assert parsed(tmp_path, *PATHS, "--mosaics", "1", text=text).mosaics == 1
    with pytest.raises(TrainingError, match="'codebook' is not on that path"):
        parsed(tmp_path, "--stage", "q.train=[codebook]", text=text)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("- a\n- b\n", "must be a mapping of settings"),
        ("a: [1\n", "is not YAML"),
        ("batchsize: 3\n", "has no setting 'batchsize'; did you mean 'batch_size'?"),
        ("bf16: 1\n", "bf16 must be true or false, got 1"),
        ("stages: [a]\n", "stages must be a mapping"),
        (
            "stages: {a: {steps: 1, train: [head], path: autoencoder}}\n",
            "path 'autoencoder' can train encoder, decoder, codebook, linear; 'head' is not",
        ),
        ("stages: {a: {steps: 1, train: [codebook]}}\n", "'codebook' is not on that path"),
        ("stages: {a: {steps: 1, train: [head], crop: 32}}\n", "a stage's crop needs path: autoencoder"),
        ("stages: {a: {steps: 1}}\n", "a stage must train something"),
        ("stages: {a: {steps: 1, train: [all]}}\n", "'all' is none of these"),
        (
            "stages: {a: {steps: 1, train: [head], path: x}}\n",
            "path must be one of tokens, autoencoder, features",
        ),
        (
            "stages: {a: {steps: 1, train: [head], path: features}}\n",
            "path 'features' trains features alone or, with tokens, what makes them",
        ),
        (
            "stages: {a: {steps: 1, train: [features, tokens], path: features, crop: 32}}\n",
            "a stage with path 'features' draws its own squares; leave its crop out",
        ),
    ],
)
def test_wrong_recipes(tmp_path: Path, text: str, sentence: str) -> None:
    with pytest.raises(TrainingError) as caught:
        parsed(tmp_path, *PATHS, text=text)
    assert sentence in str(caught.value)


def test_the_command_line_meets_blank_and_wrong_fields(tmp_path: Path) -> None:
    settings = parsed(tmp_path, *PATHS, "--shape", "vocab_size=3", text=TEXT + "shape:\n")
    assert settings.shape == {"vocab_size": 3}
    with pytest.raises(TrainingError, match=r"--stage: 'stages' has no fields, it is \['joint'\]"):
        parsed(tmp_path, *PATHS, "--stage", "joint.steps=3", text="stages: [joint]\n")
    with pytest.raises(TrainingError, match=r"the recipe's stages are 1, joint"):
        parsed(tmp_path, *PATHS, "--stage", "x.steps=3", text=TEXT.replace("stages:", "stages:\n  1: {}"))


def test_a_recipe_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="cannot be read: No such file"):
        read_recipe(tmp_path / "nope.yaml")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"seed": 10**30}, "seed must be less than 2^63, got 10"),
        ({"fit_images": 10}, "fit_images must be at least 32, got 10"),
        ({"learning_rate": 0.0}, "learning_rate must be above 0, got 0.0"),
        ({"full_share": 2.0}, "full_share must be between 0 and 1, got 2.0"),
        (
            {"ramp_end": 0.2},
            "recipe has no setting 'ramp_end': lambda_eos is whole from 25% of a stage on; leave it out",
        ),
        ({"eos_rule": "own"}, "eos_rule must be 'sampled' or 'paper', got 'own'"),
        ({"data": ["a", 2012]}, "data must be a list of text, got ['a', 2012]; quote its items"),
        ({"threshold_rate": 0.1}, "no setting 'threshold_rate': the threshold moves by at most 2% a step"),
        ({"crop_scale": 1.5}, "crop_scale must be between 0 and 1, got 1.5"),
        ({"parallel": "dp"}, "parallel must be 'ddp' or 'fsdp2', got 'dp'"),
        ({"weight_decay": float("nan")}, "weight_decay must be at least 0, got nan"),
    ],
)
def test_settings_out_of_range(change: dict[str, Any], sentence: str) -> None:
    with pytest.raises(TrainingError) as caught:
        make_settings(recipe(**change), "recipe")
    assert sentence in str(caught.value)


def test_the_documentation_lists_every_setting() -> None:
    text = (Path(__file__).parents[2] / "docs" / "training.md").read_text(encoding="utf-8")
    table = text.partition("\n## Settings\n")[2].partition("\nAll else is a constant")[0]
    listed = re.findall(r"`(\w+)`", table)
    assert sorted(listed) == sorted(
        ["stages", *(f.name for f in [*fields(Settings), *fields(Stage)] if f.name != "stages")]
    )


def test_what_is_constant_now_says_so(tmp_path: Path) -> None:
    for name, sentence in _CONSTANTS.items():
        with pytest.raises(TrainingError) as caught:
            parsed(tmp_path, *PATHS, text=f"{TEXT}{name}: 1\n")
        assert f"recipe.yaml has no setting {name!r}: {sentence}; leave it out" in str(caught.value)
