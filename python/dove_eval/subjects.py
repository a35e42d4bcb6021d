"""What an evaluation looks at: its images, its models, and the networks that judge, all found beforehand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dove_eval import backbones, questions
from dove_eval.backbones import Distance, Features
from dove_eval.datasets import ImageSet, check_apart, find_images, with_test_set
from dove_eval.questions import Questions
from dove_eval.settings import ASKED, ONE_MODEL, QUALITY, EvalSettings
from dove_eval.systems import Dove, Vqgan
from dove_ext.api import load_model
from dove_ext.devices import find_device
from dove_ext.errors import DoveError
from dove_ext.models.dove import DoveModel
from dove_ext.models.vqgan import VQGAN


@dataclass(frozen=True)
class Subjects:
    """What settings name.

    Attributes:
        images: of `data`, or None.
        labelled: of `labelled`, each with a label and a split, or None.
        dove: the model in question.
        qdove: a query-conditioned model, or None.
        against: a second model, or None.
        vqgan: the fixed-length baseline, but for `compare`.
        counts: token counts that the model can give.
        questions: sets of queries with boxes, for `query`.
        query_counts: token counts at which these are compared.
        words: of the training data, see `questions.words_of`, or None.
        distance: the perceptual distance, or None.
        features: what a Frechet distance compares, or None.
        notes: a sentence for each thing that cannot be had and was not asked for by name.
    """

    images: ImageSet | None
    labelled: ImageSet | None
    dove: Dove
    qdove: Dove | None
    against: Dove | None
    vqgan: Vqgan | None
    counts: tuple[int, ...]
    questions: tuple[Questions, ...]
    query_counts: tuple[int, ...]
    words: frozenset[str] | None
    distance: Distance | None
    features: Features | None
    notes: tuple[str, ...]

    @property
    def reader(self) -> Dove:
        """The model that is asked text queries."""
        return self.dove if self.qdove is None else self.qdove

    @property
    def sets(self) -> list[ImageSet]:
        """All sets of images."""
        found = [self.images, self.labelled, *(questions.images for questions in self.questions)]
        return list({id(images): images for images in found if images is not None}.values())

    @property
    def size(self) -> int:
        """Side of the images that all models take."""
        return self.dove.model.config.image_size


def find_subjects(settings: EvalSettings) -> Subjects:
    """Find data, models and judges; nothing is measured.

    Raises:
        DoveError: naming what cannot be found or does not fit together.
    """
    notes: list[str] = []
    images = None
    if settings.data and settings.measurement != "query":
        images = find_images(settings.data).limit(settings.limit)
    labelled = _labelled(settings)
    if labelled is None and settings.measurement == "all":  # albums are folders, too: classes are not guessed
        notes.append("Classification and linear probe: give images with classes by --labelled.")
    loading = {"device": find_device(settings.device), "dtype": getattr(torch, settings.dtype)}
    dove = Dove(load_model(str(settings.model), **loading))
    qdove = against = vqgan = None
    if settings.qdove is not None:
        qdove = _second("qdove", str(settings.qdove), "qdove", settings, dove, loading)
    if settings.against is not None:
        against = _second("against", str(settings.against), "other", settings, dove, loading)
    if settings.measurement in ONE_MODEL:  # named after the model, whose name is known by now
        vqgan = _vqgan(settings, dove, loading)
    _check_layer(settings, dove, qdove)
    distance = features = None
    if settings.measurement in QUALITY:
        distance, features = backbones.load(
            settings.perceptual, settings.perceptual_weights, settings.inception, notes
        )
    counts = _counts(settings.counts, "--counts", dove, needed=settings.measurement in QUALITY)
    asked = _questions(settings, qdove or dove)
    query_counts = _counts(settings.query_counts, "--query-counts", qdove or dove, needed=bool(asked))
    words = questions.words_of(settings.known) if settings.known and asked else None
    images = asked[0].images if settings.measurement == "query" else images
    return Subjects(
        images, labelled, dove, qdove, against, vqgan, counts, asked, query_counts, words, distance, features,
        tuple(notes),
    )  # fmt: skip


def _labelled(settings: EvalSettings) -> ImageSet | None:
    if not settings.labelled:
        return None
    images = find_images(settings.labelled)
    if settings.labelled_test:
        test = find_images(settings.labelled_test)
        check_apart(images, test)
        images = with_test_set(images, test)
    return images.labelled().limit_per_class(settings.per_class)


def _second(
    option: str, name: str, key: str, settings: EvalSettings, dove: Dove, loading: dict[str, Any]
) -> Dove:
    model = DoveModel.from_pretrained(name, **loading)
    size = dove.model.config.image_size
    if model.config.image_size != size:
        raise DoveError(
            f"--{option} {name!r} takes images of {model.config.image_size} pixels, {dove.name} of {size}; "
            "only models of one size stand side by side"
        )
    query = torch.tensor(settings.null_query) if key == "qdove" and settings.null_query else None
    words = model.config.query_vocab_size
    if query is not None and not query.max() < words:
        raise DoveError(
            f"--null-query {' '.join(map(str, query.tolist()))} does not fit {name!r}, which "
            + (f"takes ids from 0 to {words - 1}" if words else "takes no ids of words; leave it out")
        )
    second = Dove(model, key, query)
    if second.name == dove.name:  # two trainings of one preset
        dove.name, second.name = _apart(str(settings.model), name)
    return second


def _vqgan(settings: EvalSettings, dove: Dove, loading: dict[str, Any]) -> Vqgan:
    size = dove.model.config.image_size
    if settings.vqgan is not None:
        return Vqgan(
            VQGAN.from_pretrained(settings.vqgan, **loading), size, _folder_name(str(settings.vqgan))
        )
    own = dove.model.vqgan
    quantised = "" if own.quantize is not None else ", not quantised"
    return Vqgan(own, size, f"{dove.name}'s VQGAN{quantised}")


def _check_layer(settings: EvalSettings, *systems: Dove | None) -> None:
    for system in systems:
        layers = 0 if system is None else len(system.model.generator.stack.layers)
        if system is not None and settings.layer is not None and settings.layer > layers:
            raise DoveError(
                f"--layer {settings.layer} is above the {layers} layers of {system.name}'s generator"
            )


def _counts(given: Sequence[int], option: str, dove: Dove, *, needed: bool) -> tuple[int, ...]:
    counts = tuple(sorted(set(dove.counts(given))))
    if not counts and needed:
        raise DoveError(
            f"{option} {' '.join(map(str, given))} are all above the "
            f"{dove.model.config.num_tokens} tokens of {dove.name}"
        )
    return counts


def _questions(settings: EvalSettings, dove: Dove) -> tuple[Questions, ...]:
    """Of `query` those of the data, which must have some; of `all` those of its tar shards, if any."""
    if settings.measurement not in ASKED:
        return ()
    model, needed = dove.model, settings.measurement == "query"
    if not needed and not model.config.query_vocab_size:
        return ()
    questions.require_reader(model)
    data = [path for path in settings.data if needed or str(path).endswith(".tar")]
    regions = questions.read(data, needed=needed) if data else ()
    found = [questions.of_shards(regions, data, model, settings.limit)] if len(regions) else []
    if settings.mosaic_data:
        found.append(questions.of_mosaics(settings.mosaic_data, settings.mosaics, model, settings.limit))
    return tuple(found)


def _apart(first: str, second: str) -> tuple[str, str]:
    """Two model names or folders as people would call them, different ones."""
    short = _folder_name(first), _folder_name(second)
    return short if short[0] != short[1] else (first, second)


def _folder_name(path: str) -> str:
    """What people call a model's folder: training calls each one `model`, inside a folder that has a name."""
    folder = Path(path).resolve()
    return folder.parent.name if folder.name == "model" else folder.name
