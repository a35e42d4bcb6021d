"""Lengths by the quality of a model's own reconstruction."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from dove_ext.metrics.pixel import PSNR_CEILING, psnr

Render = Callable[[Tensor, Tensor], Tensor]
"""Tokens [B, K, D] and lengths int32 [B] to pixels [B, 3, S, S], as `DoveModel.render`."""


GUIDED = 4  # lengths tried by the closed form; what is open after so many is bisected


def shortest_reaching(
    render: Render,
    tokens: Tensor,
    pixels: Tensor,
    target: float,
    *,
    most: int,
    least: int = 1,
    expected: Tensor | None = None,
    weight: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The fewest tokens of each image whose reconstruction is as close to it as asked for.

    An image's reconstruction with its length reaches the target, and with one token less it does not: both
    are seen, none is foretold. Where quality falls with a further token somewhere, an even smaller number may
    reach it, too. `least` tokens are given where fewer would do.

    The lengths are bisected: about log2 `most` reconstructions. With `expected` the next length to try is
    where it says, corrected by what the last try was off: about three reconstructions. Nobody waits for a
    GPU: there all images are bisected to the end, as a recorded graph needs it.

    Args:
        render: reconstructs.
        tokens: of B images, [B, K, D].
        pixels: the images, [B, 3, S, S] in [-1, 1].
        target: peak signal-to-noise ratio in dB.
        most: the most tokens of an image, 1..K.
        least: the fewest, 1..`most`.
        expected: float32 [B, at least `most`], about what the first 1, 2, ... tokens reach, in dB; or None.
        weight: [B, 1, S, S], where closeness counts (`metrics.psnr`); None: everywhere alike.

    Returns:
        (Tensor, Tensor): lengths int32 [B], `least`..`most`, the latter also where even these do not reach
        the target; and the PSNR with these lengths, float32 [B], at most `PSNR_CEILING`.
    """
    waits = tokens.device.type == "cpu"
    guide = expected[:, :most].contiguous() if waits and expected is not None else None
    too_few = torch.full((tokens.shape[0],), least - 1, dtype=torch.int32, device=tokens.device)
    enough = torch.full_like(too_few, most + 1)  # beyond what is allowed
    reached = torch.zeros(tokens.shape[0], dtype=torch.float32, device=tokens.device)
    off = torch.zeros_like(reached)
    rows = torch.arange(tokens.shape[0], device=tokens.device)
    for attempt in range((most - least + 1).bit_length() + (0 if guide is None else GUIDED)):
        if waits and not len(rows := (enough - too_few > 1).nonzero()[:, 0]):
            break
        low, high = too_few[rows], enough[rows]
        length = (low + high) // 2
        if guide is not None and attempt < GUIDED:
            says = (guide[rows] + off[rows, None] < target).sum(1, dtype=torch.int32) + 1
            length = says.clamp(low + 1, high - 1)
        length = length.clamp(1, most)  # of images that are done
        counts = None if weight is None else weight[rows]
        seen = render(tokens[rows], length).float()
        found = psnr(seen, pixels[rows].float(), black=-1.0, ceiling=PSNR_CEILING, weight=counts)
        passes, still_open = found >= target, high - low > 1
        better, last = still_open & passes, still_open & ~passes
        enough[rows] = torch.where(better, length, high)
        too_few[rows] = torch.where(last, length, low)
        reached[rows] = torch.where(better | (last & (length == most)), found.float(), reached[rows])
        if guide is not None:
            off[rows] = found.float() - guide[rows].gather(1, length.long()[:, None] - 1)[:, 0]
    return enough.clamp_max(most), reached
