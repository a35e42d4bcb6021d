"""A model with DoveModel's methods whose tokens are plain patches: exact, instant, and without weights."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dove_ext.images import prepare_images
from dove_ext.tokens import DoveTokens

SIZE, PATCH = 64, 8
SLOTS = (SIZE // PATCH) ** 2  # 64
WIDTH = 3 * PATCH**2


class PatchModel:
    """Token i is the i-th 8 x 8 patch; a flat image stops after 5 tokens, any other after 40."""

    def __init__(self, name: str = "patches") -> None:
        self.config = SimpleNamespace(name=name, image_size=SIZE, num_tokens=SLOTS, token_width=WIDTH)
        self.batches: list[int] = []

    def encode(
        self,
        images: Any,
        *,
        num_tokens: int | None = None,
        min_tokens: int | None = None,
        max_tokens: int | None = None,
        eos_threshold: float | None = None,
        token_budget: int | None = None,
        return_p_eos: bool = False,
        fit: Any = "crop",
        batch_size: int = 32,
    ) -> DoveTokens:
        pixels = prepare_images(images, SIZE, fit=fit)
        self.batches.append(len(pixels))
        if max(num_tokens or 1, max_tokens or 1) > SLOTS:
            raise ValueError(f"num_tokens must be between 1 and {SLOTS}, got {num_tokens}")
        padded = F.unfold(pixels, PATCH, stride=PATCH).transpose(1, 2)
        lengths = [5 if image.std((1, 2)).max() < 0.01 else 40 for image in pixels]
        if num_tokens:
            lengths = [num_tokens] * len(pixels)
        if token_budget:
            lengths = [token_budget // len(pixels)] * len(pixels)
            lengths[0] += token_budget - sum(lengths)
        if min_tokens:
            lengths = [max(n, min_tokens) for n in lengths]
        if max_tokens:
            lengths = [min(n, max_tokens) for n in lengths]
        p_eos = torch.full((len(pixels), SLOTS), 0.5) if return_p_eos else None
        return DoveTokens.from_padded(padded, lengths, p_eos=p_eos, model=self.config.name)

    def decode(self, tokens: DoveTokens, *, batch_size: int = 32) -> Tensor:
        tokens.require(WIDTH, SLOTS, self.config.name)
        padded = tokens.to_padded(SLOTS)[0].transpose(1, 2)
        return (F.fold(padded, (SIZE, SIZE), PATCH, stride=PATCH) + 1).div(2).clamp(0, 1)
