"""Everything an instruction-tuning run depends on, filled from recipes and command lines."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from dove_ext.config import IMAGE_LENGTHS
from dove_train.settings import TrainingError, at_least, build_settings, one_of, setting

TEMPLATES = ("vicuna", "plain")
# What a resumed run may change: where things lie, and what decides no weight.
FREE = {
    "data", "images", "cache", "device", "batch_size", "log_every", "checkpoint_every", "keep_checkpoints",
    "max_unreadable", "tensorboard", "activation_checkpointing",
}  # fmt: skip


@dataclass
class Settings:
    """One run. Recipes are YAML files of these fields; the command line overrides single ones.

    The defaults are the paper's (Table 8), but for the encoder.
    """

    # --- the model ---
    encoder: str = setting("dove-tiny", "the dove model whose tokens are read: a name, folder or hub id")
    language_model: str = setting("", "causal language model of transformers: a folder or hub id")
    text_config: dict[str, Any] = field(
        default_factory=dict,
        metadata={"help": "in place of language_model: fields of a new one, such as model_type: llama"},
    )
    tokenizer: str = setting("", "folder or hub id of the tokenizer (empty: the language model's)")
    start_from: str = setting("", "folder of a dove_vlm model to go on with, instead of these")
    train_encoder: bool = setting(False, "train the encoder, too: pictures instead of cached tokens")
    train_language_model: bool = setting(True, "train the language model; false: the connector alone")
    # --- the data ---
    data: list[str] = field(
        default_factory=list, metadata={"help": "conversations: LLaVA's JSON, or JSON lines"}
    )
    images: str = setting("", "folder that the images' names are relative to (empty: that of each data file)")
    template: str = setting("vicuna", "how turns are written: 'vicuna' or 'plain'")
    max_length: int = setting(2048, "most tokens of a row, images included; what is longer is cut at its end")
    lengths: dict[str, Any] = field(
        default_factory=dict, metadata={"help": "how many tokens an image has: " + ", ".join(IMAGE_LENGTHS)}
    )
    fit: str = setting("pad", "how a picture becomes square: 'pad', 'crop' or 'squash'")
    tiles: int = setting(0, "most tiles a picture is cut into, beside a thumbnail (0: it stays whole)")
    ask: bool = setting(False, "Q-DOVE: an image's tokens are asked for by the row's first question")
    cache: str = setting("", "folder of tokens that were encoded before (empty: in the run folder)")
    max_unreadable: int = setting(100, "rows skipped, unreadable or too long; one more ends the run")
    packed: bool = setting(False, "rows of a pass in one, without padding, instead of beside one another")
    # --- optimisation ---
    steps: int = setting(5000, "optimiser steps")
    global_batch: int = setting(8, "rows a step, over all processes")
    batch_size: int = setting(1, "rows a process and a pass; it changes memory and time, and no result")
    learning_rate: float = setting(2e-5, "peak of the language model's")
    connector_learning_rate: float = setting(2e-4, "peak of the connector's")
    encoder_learning_rate: float = setting(2e-5, "peak of the encoder's, if it is trained")
    warmup_steps: int = setting(250, "linear warm-up, in steps; then a cosine to 0")
    weight_decay: float = setting(0.01, "AdamW's, of matrices")
    clip: float = setting(1.0, "largest norm of the gradient; a longer one is scaled down")
    bf16: bool = setting(True, "bfloat16 autocast, and cached tokens of 2 bytes a value")
    # --- scale ---
    device: str = setting("auto", "'auto': the GPU of this process, if there is one; or cpu, cuda, ...")
    parallel: str = setting("ddp", "under torchrun: 'ddp' or 'fsdp2'")
    activation_checkpointing: bool = setting(False, "recompute activations in the backward pass")
    # --- the run ---
    seed: int = setting(0, "seed of new weights and of the order of rows")
    log_every: int = setting(10, "steps between progress lines")
    checkpoint_every: int = setting(500, "steps between checkpoints")
    keep_checkpoints: int = setting(1, "newest checkpoints that are kept")
    tensorboard: bool = setting(False, "write tensorboard logs, too")

    def __post_init__(self) -> None:
        least = {
            "max_length": 8,
            **dict.fromkeys(("steps", "global_batch", "batch_size", "warmup_steps", "log_every"), 1),
            **dict.fromkeys(("checkpoint_every", "keep_checkpoints"), 1),
            **dict.fromkeys(("learning_rate", "connector_learning_rate", "encoder_learning_rate"), 0),
            **dict.fromkeys(("weight_decay", "max_unreadable", "seed", "tiles"), 0),
        }
        for name, bound in least.items():
            at_least(self, bound, name)
        if not 0 < self.clip < float("inf"):
            raise TrainingError(f"clip must be above 0, got {self.clip}")
        choices = {"template": TEMPLATES, "parallel": ("ddp", "fsdp2"), "fit": ("pad", "crop", "squash")}
        one_of(self, choices)
        for name in self.lengths:
            if name not in IMAGE_LENGTHS:
                raise TrainingError(
                    f"lengths are chosen by {', '.join(IMAGE_LENGTHS)}; {name!r} is none of these"
                )
        if self.train_encoder and (self.ask or self.tiles or self.parallel == "fsdp2"):
            other = "ask" if self.ask else "tiles" if self.tiles else "parallel: fsdp2"
            raise TrainingError(f"a trained encoder cannot go with {other}; leave one out")


MODELS = ("language_model", "text_config", "start_from")
"""The settings of which one says which language model is trained."""


def make_settings(values: dict[str, Any], source: str) -> Settings:
    """Settings from plain values, each checked.

    Raises:
        TrainingError: naming the field that is unknown, of the wrong type, out of range or missing.
    """
    settings = build_settings(Settings, values, source)
    if not settings.data:
        raise TrainingError(f"{source}: there is no data: give --data a file of conversations")
    given = [name for name in MODELS if getattr(settings, name)]
    if len(given) != 1:
        raise TrainingError(
            f"{source}: give one of language_model (trained), text_config (a new one) and start_from, not "
            f"{' and '.join(given) or 'none'}"
        )
    if settings.text_config and not settings.tokenizer:
        raise TrainingError(f"{source}: a new language model needs a tokenizer: give its folder")
    return settings
