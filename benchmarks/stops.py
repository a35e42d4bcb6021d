"""A generator with random weights that stops where it is told to, by its own arg-max.

Random weights predict no EOS, so such a model would always run to its last position. Here the EOS row of the
vocabulary head is fitted by least squares to the model's own hidden states on the benchmark's pictures: the
EOS logit stands above all others from the wanted position on and below them before it. Nothing of the encode
is bypassed; the lengths that come out (within a few positions of those wanted) are part of the record.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dove_ext import DoveModel

MARGIN = 20.0  # between EOS and the best other word, at a full step; the others lie about 2 above zero


@torch.no_grad()
def fit_eos(model: DoveModel, latents: Tensor, stops: Sequence[int]) -> None:
    """Change the EOS row of `model` so that image b ends at position stops[b].

    Args:
        model: with a head without bias.
        latents: `model.vqgan.encode` of the pictures, [B, P, C].
        stops: one position an image, 1..K; K: no stop.
    """
    head, slots = model.generator.embed_out.weight, model.config.num_tokens
    hidden = model.generator(latents.to(model.dtype)).float()  # [B, K, hidden]
    others = torch.stack([(image @ head.float().T).amax(-1) for image in hidden])  # [B, K]
    position = torch.arange(slots, device=hidden.device)
    behind = position >= torch.tensor(stops, device=hidden.device)[:, None]
    wanted = (others + MARGIN * torch.where(behind, 1.0, -1.0)).flatten().double()
    x = hidden.flatten(0, 1).double()
    ridge = 0.1 * torch.eye(x.shape[1], dtype=x.dtype, device=x.device)
    head[model.config.eos_id] = torch.linalg.solve(x.T @ x + ridge, x.T @ wanted).to(head.dtype)
