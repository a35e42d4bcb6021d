"""Every recipe that ships takes two steps of each of its stages, as the command line would."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dove_ext.cli import main
from dove_train.settings import make_settings, read_recipe
from tests.models.micro import words
from tests.train.small import PHOTOS, asked_shard, lite_file

OF_VLM = {"vicuna-7b-dove", "small-vlm", "small-vlm-rotary"}  # of `dove vlm train`: tests/instruct
RECIPES = [p for p in sorted((Path(__file__).parents[2] / "recipes").glob("*.yaml")) if p.stem not in OF_VLM]

# What proves nothing here and costs minutes: width, depth and size.
_SMALL = ["--shape", "image_size=64"]
_SHALLOW = [*_SMALL, "generator.layers=3", "token_decoder.layers=1", "vqgan.decoder_blocks=1"]
LIGHTER = {
    "ablation": _SHALLOW,
    "dove-tiny": _SHALLOW,
    "dove-tiny-gaussian": _SHALLOW,
    "dove-base-imagenet": [
        *_SMALL, "vocab_size=1000", "generator.layers=1", "token_decoder.layers=1", "vqgan.encoder_blocks=1",
        "vqgan.decoder_blocks=1", "vqgan.channels=32",
        "--perceptual", "", "--workers", "0", "--bf16", "false",
    ],
    "dove-base-q": [
        *_SMALL, "vocab_size=1000", "generator.layers=1", "token_decoder.layers=1", "vqgan.encoder_blocks=1",
        "vqgan.decoder_blocks=1", "vqgan.channels=32", "query_vocab_size=276",
        "--perceptual", "", "--workers", "0", "--bf16", "false",
    ],
    "dove-tiny-q": ["--start-from", "dove-tiny-q", "--mosaics", "0"],  # its words are there already
    "vqgan-tiny": ["--stage", "joint.crop=64", "--shape", "codebook_size=512"],
}  # fmt: skip


def test_there_are_recipes() -> None:
    names = {path.stem for path in RECIPES}
    assert {"dove-tiny", "vqgan-tiny", "dove-base-imagenet", "dove-tiny-gaussian"} <= names


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_dry_run(
    path: Path, tmp_path: Path, mobilenet_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = ["--data", str(PHOTOS)]
    if path.stem == "dove-base-q":
        (tmp_path / "tokenizer.json").write_text(words(), encoding="utf-8")
        data = [
            "--queries",
            str(asked_shard(tmp_path / "a.tar")),
            "--tokenizer",
            str(tmp_path / "tokenizer.json"),
        ]
    if path.stem == "dove-tiny-q":
        lite = lite_file(tmp_path / "lite.pth", 1.1, 1.2)
        data = ["--queries", str(asked_shard(tmp_path / "a.tar")), "--classifier", str(lite)]
    arguments = [
        "train", str(path), "-o", str(tmp_path),
        *data, "--validation", str(PHOTOS / "cat.jpg"),
        "--steps", "2", "--batch-size", "1", "--fit-images", "32", "--device", "cpu", "--log-every", "1",
        "--alignment-weights", str(mobilenet_file),
        *LIGHTER.get(path.stem, []),
    ]  # fmt: skip
    assert main(arguments) == 0, capsys.readouterr().err
    settings = make_settings(read_recipe(path), str(path))
    records = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    steps = [record for record in records if "loss" in record]
    assert [r["stage"] for r in steps] == [name for name in settings.stages for _ in range(2)]
    assert all(isinstance(r["loss"], float) and isinstance(r["norm"], float) for r in steps)  # all finite
    assert (tmp_path / "model" / "model.safetensors").is_file()


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_states_its_command(path: Path) -> None:
    assert f"dove train recipes/{path.name}" in path.read_text()
