"""`dove eval query`: what tokens for a text query bring inside its boxes (Q-DOVE, 2.3): the numbers.

Boxes are never given to the model, but for what is called `given`: an upper bound.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from dove_eval import quality
from dove_eval.bootstrap import bootstrap, mean
from dove_eval.questions import Question, Questions, is_known
from dove_eval.rows import Rows, fill
from dove_eval.systems import OWN, Dove
from dove_ext.metrics import PSNR_CEILING, psnr
from dove_ext.models.dove import DoveModel
from dove_ext.tokens import DoveTokens

SMALL = 0.3  # of a picture: boxes that cover more hold its centre anyway
HALF = 0.5  # of a map's maximum, and of a cell that counts as a box's


def measure(
    questions: Questions, model: Dove, counts: Sequence[int], output: Path, *, batch_size: int
) -> Rows:
    """For each question PSNR inside its boxes, lengths, and where the map points.

    Columns: `null-N`, `query-N`, `wrong-N` (the picture's other query; 0 where there is none) and `given-N`
    (where the model can code regions), N a count; `null-own`, `query-own`; `null-length`, `query-length`;
    `cover` of the boxes; and of a model with a map `peak`, `centre` and `iou`.
    """
    dove = model.model
    size, most = dove.config.image_size, max(counts)

    def compute(indices: list[int], pixels: Tensor) -> dict[str, Tensor]:
        asked = [questions.asked[i] for i in indices]
        masks = torch.stack([question.mask(size) for question in asked])
        pictures = list(dict.fromkeys(question.number for question in asked))
        at = [pictures.index(question.number) for question in asked]
        first = [at.index(n) for n in range(len(pictures))]
        seen = dove.prefix((pixels[first] + 1) / 2)
        row = {"cover": masks.mean((1, 2))}

        def inside(tokens: DoveTokens, rows: Sequence[int], which: Sequence[int]) -> Tensor:
            """PSNR inside the boxes of questions `rows` of the pictures at `which` of the tokens."""
            shown = quality.as_shown(dove.decode(tokens).cpu() * 2 - 1)
            weight = masks[rows, None]
            return psnr(shown[which], pixels[rows], black=-1.0, weight=weight, ceiling=PSNR_CEILING)

        def at_counts(kind: str, tokens: DoveTokens, rows: Sequence[int], which: Sequence[int]) -> None:
            for n in counts:  # token i does not depend on later ones
                row[f"{kind}-{n}"] = torch.zeros(len(asked))
                row[f"{kind}-{n}"][rows] = inside(tokens.truncate(n), rows, which)

        every = list(range(len(asked)))
        texts = [question.query for question in asked]
        own = dove.encode(seen)
        row |= {"null-own": inside(own, every, at), "null-length": own.lengths.cpu()[at]}
        at_counts("null", dove.encode(seen, num_tokens=most), every, at)
        about = seen[at]
        mapped = dove.relevance is not None
        own = dove.encode(about, query=texts, return_relevance=mapped)
        row |= {"query-own": inside(own, every, every), "query-length": own.lengths.cpu()}
        at_counts("query", dove.encode(about, query=texts, num_tokens=most), every, every)
        if own.relevance is not None:
            row |= where(own.relevance.cpu(), masks)
        paired = [n for n in every if asked[n].other is not None]
        if paired:
            others = [asked[n].other for n in paired]
            wrong = dove.encode(about[paired], query=others, num_tokens=most)
            at_counts("wrong", wrong, paired, list(range(len(paired))))
        else:
            row |= {f"wrong-{n}": torch.zeros(len(asked)) for n in counts}
        if dove.region is not None:
            at_counts("given", dove.encode(about, relevance=masks, num_tokens=most), every, every)
        return row

    words = "" if dove.tokenizer is None else hashlib.sha256(dove.tokenizer.file.encode()).hexdigest()
    return fill(
        output, f"query-{questions.kind}", questions.images, compute,
        identity=[model.identity, words, list(counts), torch.__version__], size=size, fit="squash",
        batch_size=batch_size,
    )  # fmt: skip


def where(maps: Tensor, masks: Tensor) -> dict[str, Tensor]:
    """How maps lie beside boxes.

    Args:
        maps: [B, h, w], not negative.
        masks: [B, S, S], 1 inside the boxes.

    Returns:
        dict: each float32 [B]. `peak`: 1 if the middle of the strongest cell lies in a box; `centre`: 1 if
        the picture's does; `iou`: of the cells above half of the map's maximum and those that boxes cover by
        half (if they cover none so far: the ones they cover most), intersection over union.
    """
    size, grid = masks.shape[-1], maps.shape[-1]
    best = maps.flatten(1).argmax(1)
    row, column = ((n * size + size // 2) // grid for n in (best // grid, best % grid))
    cover = F.adaptive_avg_pool2d(masks[:, None], grid)[:, 0].flatten(1)
    boxed = cover >= cover.amax(1, keepdim=True).clamp_max(HALF)
    found = maps.flatten(1) > HALF * maps.flatten(1).amax(1, keepdim=True)
    return {
        "peak": masks[torch.arange(len(masks)), row, column],
        "centre": masks[:, size // 2, size // 2],
        "iou": (boxed & found).sum(1) / (boxed | found).sum(1),
    }


def summarise(
    questions: Questions, rows: Rows, counts: Sequence[int], words: frozenset[str] | None
) -> dict[str, Any]:
    """The figures as JSON; with the `words` of the training data also of known and of new words apart."""
    good = rows.good
    asked = [questions.asked[int(i)] for i in good]
    out = _figures(asked, rows, np.ones(len(good), bool), counts)
    if words is not None:
        known = np.array([is_known(question.query, words) for question in asked])
        point = [headline(counts)]
        parts = {"known": known, "new": ~known}
        out["words"] = {name: _figures(asked, rows, part, point) for name, part in parts.items()}
    return out


def headline(counts: Sequence[int]) -> int:
    """The count that figures in one number are about: 48, or else the one in the middle."""
    return 48 if 48 in counts else sorted(counts)[len(counts) // 2]


def _figures(
    asked: Sequence[Question], rows: Rows, part: np.ndarray, counts: Sequence[int]
) -> dict[str, Any]:
    """Of some of the questions; without any there are none."""
    chosen = [question for question, wanted in zip(asked, part, strict=True) if wanted]
    out: dict[str, Any] = {
        "queries": len(chosen),
        "pictures": len({question.number for question in chosen}),
    }
    if not chosen:
        return out
    column = {name: rows.values(name)[part] for name in rows.names}
    paired = np.array([question.other is not None for question in chosen])
    out |= {"with another": int(paired.sum()), "inside": {}}
    for n in counts:
        null, query, wrong = (column[f"{kind}-{n}"] for kind in ("null", "query", "wrong"))
        at = {"null": _mean(null), "query": _mean(query), "gain": _mean(query - null)}
        if paired.any():
            right, wrong = query[paired], wrong[paired]
            at |= {"right": _mean(right), "wrong": _mean(wrong), "right minus wrong": _mean(right - wrong)}
        if f"given-{n}" in column:
            given = column[f"given-{n}"]
            at |= {"given": _mean(given), "given gain": _mean(given - null)}
        out["inside"][str(n)] = at
    pairs = np.stack([column["query-length"], column["null-length"]], 1)
    out[OWN] = {
        "query length": _mean(pairs[:, 0]),
        "null length": _mean(pairs[:, 1]),
        "ratio": bootstrap(lambda rows: float(rows[:, 0].mean() / rows[:, 1].mean()), pairs).to_json(),
        "query": _mean(column["query-own"]),
        "null": _mean(column["null-own"]),
        "gain": _mean(column["query-own"] - column["null-own"]),
    }
    if "peak" in column:
        small = column["cover"] <= SMALL
        groups = {"all": small | True, "small": small}
        out["where"] = {
            name: {
                "queries": int(group.sum()),
                "peak": mean(column["peak"][group]).to_json(),
                "centre": mean(column["centre"][group]).to_json(),
                "lead": mean((column["peak"] - column["centre"])[group]).to_json(),
                "iou": _mean(column["iou"][group]),
            }
            for name, group in groups.items()
            if group.any()
        }
    return out


def _mean(values: np.ndarray) -> dict[str, Any]:
    """Mean with its interval, and the deviation over queries."""
    return {**mean(values).to_json(), "deviation": float(values.std())}


@torch.no_grad()
def answers(model: DoveModel, pixels: Tensor, texts: Sequence[str]) -> tuple[DoveTokens, Tensor]:
    """One picture asked "null" and some texts.

    Args:
        model: that reads them.
        pixels: [1, 3, S, S] in [-1, 1].
        texts: the queries.

    Returns:
        (DoveTokens, Tensor): at own lengths, of "null" and then of the texts, with maps of a model that has
        one; and the pictures, float32 [1 + texts, 3, S, S] in [0, 1].
    """
    seen = model.prefix((pixels + 1) / 2)
    mapped = model.relevance is not None
    tokens = model.encode(seen[[0] * (len(texts) + 1)], query=["null", *texts], return_relevance=mapped)
    return tokens, model.decode(tokens).cpu()
