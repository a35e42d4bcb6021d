"""The model that a run starts from."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch

from dove_ext.config import PRESETS, VQGAN_PRESETS, DoveConfig, VQGANConfig, change_shape
from dove_ext.models.dove import DoveModel
from dove_ext.models.vqgan import VQGAN
from dove_train.settings import Settings, TrainingError

_WORDS = "generator.embed_in."  # embeddings of a query's tokens


def build_model(settings: Settings, folder: Path) -> DoveModel | VQGAN:
    """The model that a run starts from: another's weights, or random ones of a preset's shape.

    Raises:
        TrainingError: if the preset is unknown or its changed shape is not valid.
        CheckpointError: if there is no model to start from, or no tokenizer.
        QueryError: if there is a tokenizer, but the model reads no queries.
    """
    known: dict[str, DoveConfig | VQGANConfig] = {**PRESETS, **VQGAN_PRESETS}
    if settings.preset not in known:
        raise TrainingError(f"no preset is named {settings.preset!r}; known are {', '.join(known)}")
    config = known[settings.preset]
    kind = VQGAN if isinstance(config, VQGANConfig) else DoveModel
    start: Any = None
    if settings.start_from:
        start = kind.from_pretrained(settings.start_from)
        config = start.config
    try:
        config = change_shape(config, settings.shape)
    except ValueError as error:
        raise TrainingError(f"shape: {error}") from error
    torch.manual_seed(settings.seed)
    if isinstance(config, VQGANConfig):
        model: DoveModel | VQGAN = VQGAN(config).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    else:
        model = DoveModel(dataclasses.replace(config, name=settings.name or folder.resolve().name))
    if start is not None:
        try:
            model.load_state_dict(_with_new_words(start, model))
        except RuntimeError as error:
            reason = str(error).splitlines()[1].strip()
            raise TrainingError(
                f"the weights of {settings.start_from!r} do not fit the shape asked for: {reason}"
            ) from error
    if isinstance(model, DoveModel):
        if settings.tokenizer:
            model.load_tokenizer(settings.tokenizer)
        elif start is not None and model.config.query_vocab_size:
            model.tokenizer = start.tokenizer
    return model


def _with_new_words(start: Any, model: Any) -> dict[str, Any]:
    """The weights of `start`; where only `model` reads queries, with its new embeddings."""
    weights: dict[str, Any] = start.state_dict()
    if isinstance(model, DoveModel) and not start.config.query_vocab_size:
        weights |= {name: x for name, x in model.state_dict().items() if name.startswith(_WORDS)}
    return weights
