"""Everything a run depends on besides its data."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

from dove_ext.errors import DoveError


class TrainingError(DoveError, ValueError):
    """Settings, data or a checkpoint that a run cannot use; one sentence with the remedy."""


def _setting(default: Any, text: str) -> Any:
    return field(default=default, metadata={"help": text})


@dataclass
class Settings:
    """One run; the defaults train dove-tiny on a two-core machine within hours."""

    preset: str = _setting("dove-tiny", "shape of the model, if it does not start from another")
    start_from: str = _setting("", "model to start from, shape and weights, instead of the closed form")
    name: str = _setting("", "the model's name; tokens remember it (empty: the output folder's name)")
    silence_branches: bool = _setting(False, "set what start_from adds to the linear code back to zero")
    joint_steps: int = _setting(2500, "steps with all parts trained jointly")
    decoder_steps: int = _setting(
        0, "steps after that with the tokens fixed and only what renders them trained"
    )
    head_steps: int = _setting(300, "steps at the end with only the stop head trained")
    batch_size: int = _setting(16, "images a step")
    learning_rate: float = _setting(1e-4, "peak of AdamW's learning rate")
    warmup_steps: int = _setting(100, "steps in which the learning rate rises")
    weight_decay: float = _setting(0.01, "of matrices and convolutions")
    clip: float = _setting(1.0, "largest norm of the gradient")
    full_share: float = _setting(0.2, "share of samples at full length; the others are log-uniform")
    lambda_eos: float = _setting(0.05, "weight of the stop head's loss")
    target_length: float = _setting(90.0, "mean length that the stop threshold is moved towards")
    start_threshold: float = _setting(0.0, "loss that is good enough at first (0: the first batch's mean)")
    fit_images: int = _setting(768, "images the closed-form start is fitted to")
    freeze_linear_code: bool = _setting(True, "train only what is added to the closed form")
    ema: float = _setting(0.99, "decay of the averaged weights, which are evaluated and saved")
    bf16: bool = _setting(True, "bfloat16 autocast")
    seed: int = _setting(0, "of weights, lengths and the order of images")
    checkpoint_every: int = _setting(100, "steps")
    evaluate_every: int = _setting(500, "steps")

    def __post_init__(self) -> None:
        least = {
            "batch_size": 1,
            "fit_images": 32,
            "warmup_steps": 1,
            "checkpoint_every": 1,
            "evaluate_every": 1,
        }
        least |= dict.fromkeys(("joint_steps", "decoder_steps", "head_steps"), 0)
        for name, value in least.items():
            if getattr(self, name) < value:
                raise TrainingError(f"{name} must be at least {value}, got {getattr(self, name)}")
        for name in ("learning_rate", "clip", "target_length"):
            if not 0 < getattr(self, name) < float("inf"):
                raise TrainingError(f"{name} must be above 0, got {getattr(self, name)}")
        for name in ("weight_decay", "lambda_eos", "start_threshold"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise TrainingError(f"{name} must be at least 0, got {getattr(self, name)}")
        for name in ("full_share", "ema"):
            if not 0 <= getattr(self, name) <= 1:
                raise TrainingError(f"{name} must be between 0 and 1, got {getattr(self, name)}")
        if self.silence_branches and not self.start_from:
            raise TrainingError(
                "silence_branches needs start_from: a new model's branches are silent already"
            )


SETTINGS_HELP: dict[str, str] = {f.name: f.metadata["help"] for f in fields(Settings)}
