"""The model that a run starts from."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from dove_ext.config import PRESETS, VQGAN_PRESETS, DoveConfig, VQGANConfig, change_shape
from dove_ext.errors import ImageError
from dove_ext.images.index import ImageIndex
from dove_ext.images.labels import Notes
from dove_ext.models.dove import DoveModel
from dove_ext.models.text import QueryTokenizer
from dove_ext.models.vqgan import VQGAN
from dove_train.pointing import class_names, classifier_file, read_classifier
from dove_train.queries import read_queries
from dove_train.settings import Settings, TrainingError
from dove_train.words import make_words

_READS = ("generator.embed_in.", "relevance.")  # what reads a query


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
            model.load_state_dict(_with_what_is_new(start, model))
        except RuntimeError as error:
            reason = str(error).splitlines()[1].strip()
            raise TrainingError(
                f"the weights of {settings.start_from!r} do not fit the shape asked for: {reason}"
            ) from error
    if isinstance(model, DoveModel):
        if model.relevance is not None and (start is None or start.relevance is None):
            _start_map(model, settings)
        elif settings.tokenizer:
            model.load_tokenizer(settings.tokenizer)
        elif start is not None and model.config.query_vocab_size:
            model.tokenizer = start.tokenizer
    return model


def _with_what_is_new(start: Any, model: Any) -> dict[str, Any]:
    """The weights of `start`; where only `model` reads queries, with its new embeddings or map."""
    weights: dict[str, Any] = start.state_dict()
    if isinstance(model, DoveModel) and not start.config.query_vocab_size:
        weights |= {name: x for name, x in model.state_dict().items() if name.startswith(_READS)}
    return weights


def _start_map(model: DoveModel, settings: Settings) -> None:
    """Give a new relevance map its backbone and its words, and the model the tokenizer of these.

    Raises:
        TrainingError: if there is no sentence encoder, or one that does not fit.
        CheckpointError: if the backbone's file cannot be had.
    """
    relevance = model.relevance
    assert relevance is not None
    if not settings.sentence_encoder:
        raise TrainingError(
            "a new relevance map needs words: give the folder of a sentence encoder, such as "
            "all-MiniLM-L6-v2, as --sentence-encoder, or start from a model that has a map"
        )
    read_classifier(classifier_file(settings.classifier), relevance.backbone)
    config = model.config
    names = [*class_names(), *_labels(settings)]
    text, table = make_words(
        Path(settings.sentence_encoder), names, config.query_vocab_size, relevance.config.word_width
    )
    with torch.no_grad():
        relevance.words.weight.copy_(table)
    model.tokenizer = QueryTokenizer(
        text, f"the tokenizer of {settings.sentence_encoder}", config.query_vocab_size, config.query_length
    )


def _labels(settings: Settings) -> Iterator[str]:
    """What the training data call things."""
    for part in read_queries(settings.queries):
        yield from (region.query for region in part if region.query)
    try:
        index = ImageIndex([Path(path) for path in settings.data]) if settings.data else None
        notes = None if index is None else Notes(index)
        for i in range(0 if index is None else len(index)):
            label, _ = notes.label(i) if notes is not None else (None, None)
            yield (label or "").replace("_", " ")
    except ImageError as error:
        raise TrainingError(str(error)) from error
