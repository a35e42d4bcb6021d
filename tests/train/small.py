"""A recipe that trains a model small enough for a test: 64 x 64 pixels, up to 64 tokens 64 wide."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dove_train.settings import Settings, make_settings

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
        "stages": {"joint": {"steps": 3, "train": PARTS}, "head": {"steps": 2, "train": ["head"]}},
    }
    return {**values, **changes}


def settings(**changes: Any) -> Settings:
    """The same as `Settings`."""
    return make_settings(recipe(**changes), "recipe")
