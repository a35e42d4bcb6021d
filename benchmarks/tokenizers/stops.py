"""A generator with random weights that stops where it is told to, by its own arg-max.

Random weights predict no EOS, so such a model would always run to its last position. Here the EOS row of the
vocabulary head is fitted to the model's own hidden states on the benchmark's pictures: the EOS logit stands
above all others at the wanted position and just behind it, and below them before it. Nothing of the encode is
bypassed; the lengths that come out are part of the record.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dove_ext import DoveModel

MARGIN = 20.0  # wanted between EOS and the best other word; the others lie about 2 above zero
REACH = 4  # positions from a stop on where EOS is to win: rounding may cost the first of them
ROUNDS = 60


@torch.no_grad()
def fit_eos(model: DoveModel, latents: Tensor, stops: Sequence[int]) -> None:
    """Change the EOS row of `model` so that image b ends at position stops[b].

    Args:
        model: with a head without bias.
        latents: `model.vqgan.encode` of the pictures, [B, P, C].
        stops: one position an image, 1..K; K: no stop.
    """
    head, slots = model.generator.embed_out.weight, model.config.num_tokens
    hidden = model.generator(model.condition_on(latents.to(model.dtype))).float()  # [B, K, hidden]
    others = torch.stack([(image @ head.float().T).amax(-1) for image in hidden])  # [B, K]
    position = torch.arange(slots, device=hidden.device)
    stop = torch.tensor(stops, device=hidden.device)[:, None]
    sign = torch.where(position >= stop, 1.0, -1.0).double()
    wanted = (others + MARGIN * sign).flatten().double()
    counts = (position < stop + REACH).flatten()  # what comes behind an image's stop is never looked at
    weight = torch.where(sign > 0, 10.0, 1.0).flatten()  # few positions stop, many do not
    x = hidden.flatten(0, 1).double()
    ridge = 0.01 * torch.eye(x.shape[1], dtype=x.dtype, device=x.device)
    row = torch.zeros(x.shape[1], dtype=x.dtype, device=x.device)
    for _ in range(ROUNDS):  # Newton's steps of a squared hinge loss: least squares over what is still wrong
        wrong = counts & ((wanted - x @ row) * sign.flatten() > 0)
        chosen = x[wrong]
        weighted = chosen * weight[wrong, None]
        step = torch.linalg.solve(chosen.T @ weighted + ridge, weighted.T @ wanted[wrong]) - row
        row = row + 0.5 * step
    head[model.config.eos_id] = row.to(head.dtype)
