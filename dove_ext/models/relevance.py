"""Where a query points: each place's relevance to a text, for models that code regions (`models.region`).

What a place shows is asked of a pretrained backbone once an image; a query then costs a product with every
place and two small convolutions. The paper's Q-DOVE learns where to look inside its generator (2.3) from
millions of boxes. With a few thousand pictures this map, and exact tokens of the places it names, go
further, and a person can look at it.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dove_ext.config import RelevanceConfig
from dove_ext.models.backbone import Backbone
from dove_ext.models.query import Query
from dove_ext.models.stack import Stack

NULL_WORD = 1
"""The id of "null" in the tokenizer of such a model."""

SHARPNESS, FLOOR = 1.5, 0.007
"""A place whose chance of showing what is asked for is p counts p^SHARPNESS + FLOOR, scaled to at most 1.

Maps err, and the picture around a thing is not nothing. Sharper maps end sooner, and lose more where they are
wrong: chosen on a third of the queries about photographs by which dove-tiny-q is measured.
"""


class RelevanceMap(nn.Module):
    """Relevance of a grid's places to a query.

    A query is the mean of its words' embeddings, which come from a sentence encoder: words that were never
    trained lie beside words of like meaning that were.

    Args:
        config: its shape.
        grid: places along a side.
        vocab_size: words.
    """

    def __init__(self, config: RelevanceConfig, grid: int, vocab_size: int) -> None:
        super().__init__()
        self.config, self.grid = config, grid
        width = config.stack.hidden
        self.backbone = Backbone(config.backbone_width, config.backbone_depth)
        self.norm = nn.LayerNorm(self.backbone.features)
        self.from_features = nn.Linear(self.backbone.features, width)
        self.places = nn.Embedding(grid**2, width)
        self.stack = Stack(config.stack)
        self.words = nn.Embedding(vocab_size, config.word_width)
        self.from_words = nn.Linear(config.word_width, 2 * width)
        self.to_match = nn.Linear(2 * width, width)
        self.to_gate = nn.Linear(2 * width, width)
        self.to_bias = nn.Linear(2 * width, 1)
        self.gated = nn.Linear(width, config.around)
        self.around = nn.Conv2d(config.around + 1, config.around, 3, padding=1)
        self.to_change = nn.Conv2d(config.around, 1, 3, padding=1)

    def see(self, pixels: Tensor) -> Tensor:
        """What the places show: [B, P, width] of pixels [B, 3, S, S] in [-1, 1]."""
        return self.places_of(self.features(pixels))

    def features(self, pixels: Tensor) -> Tensor:
        """What the backbone sees at the grid's places: [B, P, features] of pixels [B, 3, S, S] in [-1, 1]."""
        found = self.backbone(pixels)
        if found.shape[-1] != self.grid:
            found = F.interpolate(found, size=(self.grid, self.grid), mode="bilinear")
        return found.flatten(2).transpose(1, 2)

    def places_of(self, features: Tensor) -> Tensor:
        """`see` of `features`."""
        return self.stack(self.from_features(self.norm(features)) + self.places.weight, prefix=None)

    def meaning(self, query: Query) -> Tensor:
        """Mean of the words of each query, of length 1: [B, word_width].

        A query of unknown words alone means nothing: zero.
        """
        values = query.values if query.values.is_floating_point() else self.words(query.values)
        if query.lengths is not None:
            place = torch.arange(values.shape[1], device=values.device)
            values = values * (place < query.lengths[:, None])[..., None]
        return F.normalize(values.sum(1), dim=-1)

    def logits(self, seen: Tensor, meaning: Tensor) -> Tensor:
        """How much each place tells of a query: [B, P], above 0 where it does.

        Args:
            seen: [B, P, width], from `see`.
            meaning: [B, word_width], from `meaning`.
        """
        asked = F.gelu(self.from_words(meaning * math.sqrt(meaning.shape[-1])))
        match = (seen * self.to_match(asked)[:, None]).sum(-1) / math.sqrt(seen.shape[-1])
        match = match + self.to_bias(asked)
        gated = F.gelu(self.gated(seen * self.to_gate(asked)[:, None]))
        image = torch.cat([gated, match[..., None]], -1).transpose(1, 2).unflatten(2, (self.grid, -1))
        change: Tensor = self.to_change(F.gelu(self.around(image)))
        return match + change.flatten(1)

    def weights(self, seen: Tensor, query: Query) -> Tensor:
        """How much each place counts: float32 [B, P], above 0 and at most 1, for `DoveModel.about`.

        Args:
            seen: [B, P, width], from `see`.
            query: of the same images; the word "null" alone asks for the whole picture, all places alike.
        """
        chance = self.logits(seen, self.meaning(query)).float().sigmoid()
        weights = (chance**SHARPNESS + FLOOR) / (1 + FLOOR)
        return torch.where(self.is_null(query)[:, None], torch.ones_like(weights), weights)

    def is_null(self, query: Query) -> Tensor:
        """Where the whole picture is asked for, by the word "null" alone: bool [B]."""
        values, lengths = query
        alone = values.shape[1] == 1 if lengths is None else lengths == 1
        if values.is_floating_point():
            return torch.zeros(len(values), dtype=torch.bool, device=values.device)
        return (values[:, 0] == NULL_WORD) & alone

    def reset_parameters(self) -> None:
        """Initialise for training: a match of places and words, with nothing around it yet."""
        self.stack.reset_parameters()
        nn.init.trunc_normal_(self.places.weight, std=0.02)
        nn.init.zeros_(self.to_change.weight)
        assert self.to_change.bias is not None
        nn.init.zeros_(self.to_change.bias)
