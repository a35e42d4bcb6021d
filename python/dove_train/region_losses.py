"""What Q-DOVE minimises (2.3): the loss inside the boxes of a query, that outside, and a penalty on length.

Boxes are fractions x0, y0, x1, y1 of the square image, for each image at least one. Where the whole image is
asked for, its box is 0, 0, 1, 1: Eq. 5 is then L_rec of the image, and there is no outside.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch
from torch import Tensor
from torch.nn import functional as F

from dove_ext.images.regions import pixel_box
from dove_train.losses import earlier_eos_loss

LAMBDA_OUTSIDE = 1e-10
"""lambda_o of Eq. 7."""

Boxes: TypeAlias = Tensor | Sequence[Tensor]
"""Float [B, n, 4], or for each of B images [n, 4] with an n of its own; on the CPU."""

Loss: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""L_rec: reconstructions and images, both [N, 3, S, S], to [N]."""


def relevant_loss(reconstruction: Tensor, pixels: Tensor, boxes: Boxes, loss: Loss) -> Tensor:
    """Mean over an image's boxes of L_rel^i (Eq. 5): L_rec of the box, cut out and upsampled.

    The box is cut from image and reconstruction alike, and both are enlarged to the image's size, bilinearly.

    Args:
        reconstruction: [B, 3, S, S].
        pixels: [B, 3, S, S].
        boxes: see `Boxes`.
        loss: L_rec (Eq. 2). It is called once with the N boxes of all images: N counts for its memory.

    Returns:
        Tensor: float32 [B].

    Raises:
        ValueError: if there are not B images' boxes, an image has none, or one is not within its image.
    """
    size, owners = pixels.shape[-1], list[int]()
    seen, wanted = [], []
    for image, own in enumerate(_of_images(boxes, len(pixels))):
        for box in own:
            left, top, right, bottom = pixel_box(box, size)
            part = (slice(image, image + 1), slice(None), slice(top, bottom), slice(left, right))
            seen.append(_enlarged(reconstruction[part], size))
            wanted.append(_enlarged(pixels[part], size))
            owners.append(image)
    each = loss(torch.cat(seen), torch.cat(wanted)).float()
    owner = torch.tensor(owners, device=each.device)
    sums = torch.zeros(len(pixels), device=each.device).index_add(0, owner, each)
    return sums / torch.bincount(owner, minlength=len(pixels))


def _enlarged(part: Tensor, size: int) -> Tensor:
    return F.interpolate(part.float(), (size, size), mode="bilinear", align_corners=False)


def outside(boxes: Boxes, size: int, count: int) -> Tensor:
    """The pixels that are in none of an image's boxes, I_o of Eq. 6.

    Args:
        boxes: see `Boxes`.
        size: S, side of the images in pixels.
        count: B.

    Returns:
        Tensor: bool [B, S, S], on the CPU.
    """
    mask = torch.ones(count, size, size, dtype=torch.bool)
    for image, own in enumerate(_of_images(boxes, count)):
        for box in own:
            left, top, right, bottom = pixel_box(box, size)
            mask[image, top:bottom, left:right] = False
    return mask


def irrelevant_loss(reconstruction: Tensor, pixels: Tensor, mask: Tensor) -> Tensor:
    """L_irr of each image (Eq. 6): mean squared error outside all of its boxes.

    Args:
        reconstruction: [B, 3, S, S].
        pixels: [B, 3, S, S].
        mask: of `outside`, on the images' device.

    Returns:
        Tensor: float32 [B]; 0 where there is no outside.
    """
    error = (reconstruction.float() - pixels.float()).square().mean(1) * mask
    return error.flatten(1).sum(1) / mask.flatten(1).sum(1).clamp_min(1)


def query_loss(relevant: Tensor, irrelevant: Tensor) -> Tensor:
    """L_qry of each image (Eq. 7): what `relevant_loss` and `irrelevant_loss` gave, both [B]."""
    return relevant + LAMBDA_OUTSIDE * irrelevant


def length_penalty(
    p_eos: Tensor, stops: Tensor, irrelevant: Tensor, has_outside: Tensor, threshold: float
) -> Tensor:
    """L_pen of each image (2.3): an earlier EOS, where more was drawn outside the boxes than needs be.

    -1/(m-1) sum_{i<m} p_eos(i) where L_irr is below its threshold; m is the position of EOS, counted from 1.

    Args:
        p_eos: [B, K].
        stops: int32 [B], m - 1: the model's own, or the sampled length that L_irr belongs to; K: no EOS.
        irrelevant: [B], L_irr; no gradient is taken through it.
        has_outside: bool [B]; without an outside there is nothing to save there.
        threshold: mean L_irr of the last steps.

    Returns:
        Tensor: [B]; 0 where L_irr is not below the threshold, or m < 2.
    """
    spare = has_outside & (irrelevant.detach() < threshold)
    return earlier_eos_loss(p_eos, stops) * spare


def _of_images(boxes: Boxes, count: int) -> list[list[list[float]]]:
    """Each image's boxes as numbers."""
    if len(boxes) != count:
        raise ValueError(f"boxes must be those of {count} images, got {len(boxes)}")
    numbers: list[list[list[float]]] = []
    for image, own in enumerate(boxes):
        if own.dim() != 2 or own.shape[1] != 4 or not len(own):
            raise ValueError(f"image {image} needs boxes [n, 4] with n at least 1, got {list(own.shape)}")
        numbers.append(own.tolist())
    return numbers
