"""Who makes tokens: dove-tiny, dove-tiny-q, a VQGAN, and raw patches; each pictures to a `Store`."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from dove_ext.images import prepare_images
from dove_ext.metrics import own_lengths
from dove_ext.models.dove import DoveModel
from dove_ext.models.vqgan import VQGAN

from .store import Made, batches

PATCH = 16
BATCH = 16


def key(image: str, question: str) -> str:
    """The name of tokens that a question has asked for."""
    return f"{image}\n{question}"


def _pixels(root: Path, names: Sequence[str], size: int, fit: str) -> Tensor:
    return prepare_images([root / name for name in names], size, fit=fit)  # type: ignore[arg-type]


@torch.inference_mode()
def dove(model: DoveModel, root: Path, names: Sequence[str], fit: str) -> Made:
    """All K tokens: the first n are those of n tokens."""
    for part in batches(names, BATCH):
        tokens, lengths = own_lengths(model, _pixels(root, part, model.config.image_size, fit))
        yield from zip(part, tokens, lengths.tolist(), strict=True)


@torch.inference_mode()
def asked(model: DoveModel, root: Path, pairs: Sequence[tuple[str, str]], fit: str) -> Made:
    """Q-DOVE: tokens of each picture for each question about it, at their own lengths."""
    questions: dict[str, list[str]] = defaultdict(list)
    for image, question in dict.fromkeys(pairs):
        questions[image].append(question)
    for part in batches(list(questions), BATCH):
        seen = model.prefix([root / name for name in part], fit=fit)  # type: ignore[arg-type]
        places = [(i, q) for i, name in enumerate(part) for q in questions[name]]
        for some in batches(places, 2 * BATCH):
            tokens = model.encode(seen[[i for i, _ in some]], query=[q for _, q in some])
            for (i, q), image in zip(some, tokens, strict=True):
                yield key(part[i], q), image.tokens, len(image.tokens)


@torch.inference_mode()
def vqgan(model: VQGAN, size: int, root: Path, names: Sequence[str], fit: str) -> Made:
    """The codes of all positions."""
    assert model.quantize is not None
    for part in batches(names, BATCH):
        codes = model.quantize(model.encode(_pixels(root, part, size, fit)))[0]
        yield from ((name, code, len(code)) for name, code in zip(part, codes, strict=True))


def patches(size: int, root: Path, names: Sequence[str], fit: str) -> Iterator[tuple[str, Tensor, int]]:
    """Raw pixels of 16 x 16 patches, [P, 768] in [-1, 1]."""
    for part in batches(names, BATCH):
        rows = F.unfold(_pixels(root, part, size, fit), PATCH, stride=PATCH).mT
        yield from ((name, row, len(row)) for name, row in zip(part, rows, strict=True))
