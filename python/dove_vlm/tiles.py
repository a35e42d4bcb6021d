"""Pictures in tiles as a language model reads them: what stands where one tile ends, and one row of tiles."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers import initialization as init

from dove_ext.tokens import DoveTokens
from dove_vlm.configuration import DoveLlavaConfig

TOKEN, TILE, ROW = 0, 1, 2
"""Kinds of a placeholder: a token of a tile; the end of a tile; the end of a tile and of its row."""

NO_TILES = "this model reads no tiles; leave tiles out, or make it with tile_separators=True and train it so"


class Laid(NamedTuple):
    """Pictures' tokens in reading order, and what stands between them.

    Attributes:
        tokens: of all tiles: of each picture the thumbnail, then row by row.
        counts: how many placeholders each picture has, its tiles' ends among them.
        ends: int8 [P], the kind of each placeholder of all pictures.
    """

    tokens: DoveTokens
    counts: list[int]
    ends: Tensor


def lay_out(tokens: DoveTokens) -> Laid:
    """Put tiles in reading order.

    A tile that was left out (`drop_empty`) still has its end, so that the others keep their places.

    Args:
        tokens: with `tiles`.
    """
    assert tokens.tiles is not None
    places = tokens.tiles.places
    order = sorted(range(len(places)), key=places.__getitem__)  # a thumbnail's row is -1
    if order != list(range(len(places))):
        tokens = tokens[order]
    assert tokens.tiles is not None
    lengths = dict(zip(tokens.tiles.places, tokens.lengths.tolist(), strict=True))
    counts, kinds = [], []
    for number, picture in enumerate(tokens.tiles.pictures):
        before = len(kinds)
        for row in range(-1, picture.rows):
            columns = range(-1, 0) if row < 0 else range(picture.columns)
            for column in columns:
                length = lengths.get((number, row, column))
                if row < 0 and length is None:
                    continue  # one tile has no thumbnail
                last = column == columns[-1]
                kinds += [TOKEN] * (length or 0) + [ROW if last else TILE]
        counts.append(len(kinds) - before)
    return Laid(tokens, counts, torch.tensor(kinds, dtype=torch.int8))


class TileSeparators(nn.Module):
    """Two learned rows for the language model: the end of a tile, and that of a row of tiles.

    The second is LLaVA-NeXT's `image_newline`; the first is needed, since tiles have unequal numbers of
    tokens.

    Args:
        config: of the model.
    """

    def __init__(self, config: DoveLlavaConfig) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(2, config.text_config.hidden_size))
        self.start()

    def start(self) -> None:
        """New rows, of LLaVA-NeXT's scale."""
        init.normal_(self.weight, std=self.weight.shape[1] ** -0.5)

    def forward(self, features: Tensor, ends: Tensor | None) -> Tensor:
        """Features [T, width] of tokens, with the ends between them [P, width].

        Args:
            features: of all tokens.
            ends: int [P] as `lay_out` gives them, T of which are tokens; None: there are no tiles.
        """
        rows = self.weight.to(features.dtype)
        if ends is None:  # other processes share their gradient of these, and wait for this one's
            return features + 0 * rows.sum() if self.training else features
        ends = ends.to(features.device)
        placed = rows[(ends.long() - 1).clamp_min(0)]
        return placed.masked_scatter((ends == TOKEN)[:, None], features)


def check_ends(ends: Tensor, counts: list[int], tokens: int, separators: nn.Module | None) -> None:
    """Compare ends with counts and tokens.

    Args:
        ends: as `lay_out` gives them.
        counts: placeholders of each picture.
        tokens: how many there are.
        separators: the model's, if it has them.

    Raises:
        ValueError: if they do not fit together, or the model reads no tiles.
    """
    if separators is None:
        raise ValueError(NO_TILES)
    if ends.dim() != 1 or len(ends) != sum(counts):
        raise ValueError(
            f"image_tile_ends must be [{sum(counts)}], one for each of num_image_tokens, got "
            f"{list(ends.shape)}; pass both of one call of the processor"
        )
    kinds = ends.cpu()
    found = int((kinds == TOKEN).sum())
    if bool(((kinds < TOKEN) | (kinds > ROW)).any()) or found != tokens:
        raise ValueError(
            f"image_tile_ends tells of {found} tokens, image_tokens has {tokens} rows; pass both of one call "
            "of the processor"
        )
