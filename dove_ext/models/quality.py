"""Lengths by the quality of a model's own reconstruction."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from dove_ext.metrics.pixel import PSNR_CEILING, psnr

Render = Callable[[Tensor, Tensor], Tensor]
"""Tokens [B, K, D] and lengths int32 [B] to pixels [B, 3, S, S], as `DoveModel.render`."""


def shortest_reaching(
    render: Render, tokens: Tensor, pixels: Tensor, target: float, *, most: int
) -> tuple[Tensor, Tensor]:
    """The fewest tokens of each image whose reconstruction is as close to it as asked for.

    The lengths are bisected, all images at once: 1 + ceil(log2 most) reconstructions, whatever the images
    are, and no wait for the device between them. So an image's reconstruction with its length reaches the
    target, and with one token less it does not. Where quality falls with a further token somewhere, an even
    smaller number may reach it, too.

    Args:
        render: reconstructs.
        tokens: of B images, [B, K, D].
        pixels: the images, [B, 3, S, S] in [-1, 1].
        target: peak signal-to-noise ratio in dB.
        most: the most tokens of an image, 1..K.

    Returns:
        (Tensor, Tensor): lengths int32 [B], 1..most, which is also where even the most do not reach the
        target; and the PSNR with these lengths, float32 [B], at most `PSNR_CEILING`.
    """

    def quality(lengths: Tensor) -> Tensor:
        return psnr(render(tokens, lengths).float(), pixels.float(), ceiling=PSNR_CEILING)

    fewest = torch.full((tokens.shape[0],), most, dtype=torch.int32, device=tokens.device)
    reached = quality(fewest)
    too_few = torch.where(reached < target, fewest - 1, torch.zeros_like(fewest))  # -1: nothing left to try
    for _ in range((most - 1).bit_length()):
        middle = ((fewest + too_few) // 2).clamp_min(1)
        found = quality(middle)
        enough = (found >= target) & (middle > too_few)
        fewest, reached = torch.where(enough, middle, fewest), torch.where(enough, found, reached)
        too_few = torch.where(enough, too_few, torch.maximum(middle, too_few))
    return fewest, reached
