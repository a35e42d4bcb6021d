"""A recipe that tunes a language model small enough for a test, and the files it names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from dove_ext import save_image
from dove_instruct.run import Run
from dove_instruct.settings import make_settings
from dove_train.distributed import World
from tests.vlm.small import encoder, images, tokenizer

TEXT_CONFIG = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
ROWS: list[dict[str, Any]] = [
    {"image": "0.png", "question": "<image> what is this ?", "answer": "a red circle"},
    {"image": "1.png", "conversations": [
        {"from": "human", "value": "<image>\nwhat is on the table ?"}, {"from": "gpt", "value": "two cups"},
        {"from": "human", "value": "and where is the dog ?"}, {"from": "gpt", "value": "left of it"},
    ]},
    {"question": "how many cups are there ?", "answer": "there are four"},
    {"image": ["2.png", "3.png"], "question": "is <image> left of <image> ?", "answer": "no"},
    {"image": "4.png", "question": "is there a cat ?", "answer": "yes"},
    {"id": "text", "conversations": [
        {"from": "human", "value": "what is it ?"}, {"from": "gpt", "value": "a dog"},
    ]},
]  # fmt: skip


def write_files(folder: Path, rows: list[dict[str, Any]] = ROWS) -> Path:
    """Encoder, tokenizer, pictures and rows.jsonl, in a folder that is made."""
    folder.mkdir(parents=True, exist_ok=True)
    encoder().save_pretrained(folder / "encoder")
    tokenizer().save_pretrained(folder / "tokenizer")
    for number, picture in enumerate(images(5)):
        save_image(picture.float() / 255, folder / f"{number}.png")
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def recipe(files: Path, **changes: Any) -> dict[str, Any]:
    """Settings of a short run as plain values."""
    values: dict[str, Any] = {
        "encoder": str(files / "encoder"),
        "text_config": TEXT_CONFIG,
        "tokenizer": str(files / "tokenizer"),
        "data": [str(files / "rows.jsonl")],
        "template": "plain",
        "steps": 4,
        "global_batch": 4,
        "batch_size": 2,
        "warmup_steps": 2,
        "learning_rate": 1e-2,
        "connector_learning_rate": 1e-2,
        "bf16": False,
        "device": "cpu",
        "log_every": 1,
    }
    return {**values, **changes}


def run(files: Path, output: Path, **changes: Any) -> Run:
    return Run(make_settings(recipe(files, **changes), "recipe"), output, World(0, 1, torch.device("cpu")))


def log(output: Path) -> list[dict[str, Any]]:
    """What was logged of the steps."""
    lines = map(json.loads, (output / "log.jsonl").read_text().splitlines())
    return [line for line in lines if "loss" in line]
