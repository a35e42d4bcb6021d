"""Tokens of images on their way to the language model: the connector, and what it is given."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers.activations import ACT2FN
from transformers.modeling_outputs import BaseModelOutputWithPooling

from dove_ext.tokens import DoveTokens
from dove_vlm.configuration import DoveLlavaConfig
from dove_vlm.placeholders import check_counts
from dove_vlm.tiles import TileSeparators, check_ends, lay_out


class DoveMultiModalProjector(nn.Module):
    """The connector: tokens [T, D] of all images at once to the language model's width [T, hidden] (B.1)."""

    def __init__(self, config: DoveLlavaConfig) -> None:
        super().__init__()
        width, bias = config.text_config.hidden_size, config.multimodal_projector_bias
        self.linear_1 = nn.Linear(config.vision_config.hidden_size, width, bias=bias)
        self.act = ACT2FN[config.projector_hidden_act]
        self.linear_2 = nn.Linear(width, width, bias=bias)

    def forward(self, tokens: Tensor) -> Tensor:
        """See the class."""
        return self.linear_2(self.act(self.linear_1(tokens.to(self.linear_1.weight.dtype))))


class PlacedFeatures(BaseModelOutputWithPooling):
    """Features that `generate` has compared with all of the prompts; a chunk of these cannot be."""


def put_in_place(embeddings: Tensor, mask: Tensor, features: Sequence[Tensor]) -> Tensor:
    """Rows for a language model, those of images in place of their placeholders'.

    Args:
        embeddings: [B, L, hidden] of all positions.
        mask: bool [B, L], where placeholders stand.
        features: [n_i, hidden] of each image, in the order of the prompts (`placeholders.check_places`).
    """
    rows = torch.cat(list(features)).to(embeddings.device, embeddings.dtype)
    return embeddings.masked_scatter(mask[..., None], rows)


def packed_tokens(
    tokens: Tensor | DoveTokens | None,
    counts: Tensor | Sequence[int] | None,
    ends: Tensor | None,
    separators: TileSeparators | None,
    width: int,
    device: torch.device,
) -> tuple[Tensor, list[int], Tensor | None]:
    """Tokens as the encoder packs them, how many placeholders each image has, and where tiles end.

    Args:
        tokens: [T, D], all images' one after the other; or a `DoveTokens`.
        counts: placeholders of each, [N]; a `DoveTokens` knows it, and is compared.
        ends: of pictures in tiles (`tiles.lay_out`); a `DoveTokens` knows it.
        separators: of the model, if it reads tiles.
        width: D of the model that reads them.
        device: where a `DoveTokens` goes.

    Raises:
        ValueError: if they do not fit the model or one another.
    """
    if isinstance(tokens, DoveTokens):
        if tokens.tiles is None:
            lengths, ends = tokens.lengths.tolist(), None
        else:
            tokens, lengths, ends = lay_out(tokens)
        check_counts(lengths, counts)
        tokens = tokens.tokens.to(device)
    elif tokens is None or counts is None:
        raise ValueError("image_tokens needs num_image_tokens, how many of them each image has")
    else:
        lengths = [int(n) for n in counts]
    if tokens.dim() != 2 or tokens.shape[1] != width:
        raise ValueError(
            f"image_tokens must be [T, {width}] for this model, got {list(tokens.shape)}; encode with the "
            "model's own processor"
        )
    if ends is not None:
        check_ends(ends, lengths, len(tokens), separators)
    elif sum(lengths) != len(tokens):
        raise ValueError(
            f"num_image_tokens sums to {sum(lengths)}, but image_tokens has {len(tokens)} rows; pass both of "
            "one call of the processor"
        )
    return tokens, lengths, ends
