"""A recipe that trains a model small enough for a test: 64 x 64 pixels, up to 64 tokens 64 wide."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dove_ext.models.backbone import Backbone
from dove_train.pointing import CLASSES, WIDTH
from dove_train.run import Run
from dove_train.settings import Settings, make_settings
from dove_train.train import train

PHOTOS = Path(__file__).parents[2] / "examples" / "photos"

_STACK = {"hidden": 64, "layers": 1, "heads": 1, "mlp": 64}
SHAPE: dict[str, Any] = {
    "image_size": 64,
    "vqgan": {
        "channels": 32,
        "channel_multipliers": [1, 1],
        "encoder_blocks": 1,
        "decoder_blocks": 1,
        "latent_channels": 32,
    },
    "semantic_width": 15,
    "generator": _STACK,
    "token_decoder": _STACK,
}
PARTS = ["encoder", "decoder", "generator", "tokens", "token_decoder", "head"]


def recipe(**changes: Any) -> dict[str, Any]:
    """Settings of a short run as plain values."""
    values: dict[str, Any] = {
        "preset": "dove-tiny",
        "shape": SHAPE,
        "data": [str(PHOTOS)],
        "validation": [str(PHOTOS)],
        "validation_limit": 2,
        "fit_images": 32,
        "batch_size": 2,
        "warmup_steps": 2,
        "loss_scale": "relative",
        "log_every": 1,
        "checkpoint_every": 1000,
        "picture_every": 0,
        "device": "cpu",
        "bf16": False,  # on a CPU without its instructions it is slow
        "stages": {"joint": {"steps": 3, "train": PARTS}, "head": {"steps": 2, "train": ["head"]}},
    }
    return {**values, **changes}


ASKING: dict[str, Any] = {
    "preset": "dove-base-q",
    "shape": {
        "image_size": 32,
        "vocab_size": 50,
        "query_vocab_size": 276,
        "query_length": 12,
        "vqgan": {
            "channels": 32,
            "channel_multipliers": [1, 1, 1],
            "encoder_blocks": 1,
            "decoder_blocks": 1,
            "latent_channels": 32,
        },
        "generator": _STACK,
        "token_decoder": _STACK,
    },
    "loss_scale": "absolute",
    "target_length": 30,
    "data": [],
    "stages": {
        "query": {
            "steps": 3,
            "path": "query",
            "train": ["encoder", "decoder", "generator", "token_decoder", "head", "query"],
        }
    },
}
"""What differs in a recipe that trains on queries; `queries` and `tokenizer` are paths that a test gives."""


def asked_shard(
    path: Path, texts: tuple[str, ...] = ("the dog", "the cat on the left", "all the cups")
) -> Path:
    """A shard of three of the photographs, with a query each."""
    with tarfile.open(path, "w") as shard:
        for number, (photo, text) in enumerate(zip(sorted(PHOTOS.glob("*.jpg")), texts, strict=False)):
            boxes = [
                {"x0": 0.1 * number, "y0": 0.2, "x1": 0.6, "y1": 0.9},
                {"x0": 0.5, "y0": 0, "x1": 1, "y1": 1},
            ]
            note = {"boxes": boxes, "queries": [{"text": text, "boxes": [0, 1][: number + 1]}]}
            for suffix, data in (("jpg", photo.read_bytes()), ("json", json.dumps(note).encode())):
                member = tarfile.TarInfo(f"{number}.{suffix}")
                member.size = len(data)
                shard.addfile(member, io.BytesIO(data))
    return path


def lite_file(path: Path, width: float, depth: float) -> Path:
    """A file as EfficientNet-Lite's, of a network of that shape with random weights."""
    torch.manual_seed(3)
    backbone, tensors = Backbone(width, depth), dict[str, Tensor]()

    def put(name: str, norm: str, shape: torch.Size) -> None:
        tensors[f"{name}.weight"] = torch.randn(shape) / (shape[1] * shape[2] * shape[3]) ** 0.5
        tensors[f"{norm}.weight"], tensors[f"{norm}.bias"] = torch.rand(2, shape[0]).add(0.5)
        tensors[f"{norm}.running_mean"], tensors[f"{norm}.running_var"] = torch.rand(2, shape[0]).add(0.1)
        tensors[f"{norm}.num_batches_tracked"] = torch.tensor(7)

    put("_conv_stem", "_bn0", backbone.stem.weight.shape)
    for i, block in enumerate(backbone.blocks):
        if block.expand is not None:
            put(f"_blocks.{i}._expand_conv", f"_blocks.{i}._bn0", block.expand.weight.shape)
        put(f"_blocks.{i}._depthwise_conv", f"_blocks.{i}._bn1", block.depthwise.weight.shape)
        put(f"_blocks.{i}._project_conv", f"_blocks.{i}._bn2", block.project.weight.shape)
    last = backbone.blocks[-1].project.out_channels
    put("_conv_head", "_bn1", torch.Size([WIDTH, last, 1, 1]))
    tensors["_fc.weight"], tensors["_fc.bias"] = torch.randn(CLASSES, WIDTH) * 0.2, torch.zeros(CLASSES)
    torch.save(tensors, path)
    return path


def settings(**changes: Any) -> Settings:
    """The same as `Settings`."""
    return make_settings(recipe(**changes), "recipe")


def run_to_a_checkpoint(run: Run, step: int | None = None) -> None:
    """Train, and stop where a kill could: right behind the first checkpoint, or that of a step."""
    save = run.save

    def save_and_stop(*args: Any) -> None:
        save(*args)
        if step is None or run.step == step:
            raise InterruptedError

    run.save = save_and_stop  # type: ignore[method-assign]
    with pytest.raises(InterruptedError):
        train(run)
