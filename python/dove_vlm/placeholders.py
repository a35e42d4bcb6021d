"""Where the features of each image go in the prompts, and what is wrong where they do not fit."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def check_counts(lengths: Sequence[int], expected: Tensor | Sequence[int] | None) -> None:
    """Compare features with what the processor counted.

    Args:
        lengths: of each image's features, in order.
        expected: `num_image_tokens` of the processor, or None.

    Raises:
        ValueError: naming the first image whose numbers differ.
    """
    if expected is None:
        return
    expected = [int(n) for n in expected]
    if len(lengths) != len(expected):
        raise ValueError(
            f"there are features of {len(lengths)} images, but num_image_tokens names {len(expected)}; pass "
            "both of one call of the processor"
        )
    for i, (found, counted) in enumerate(zip(lengths, expected, strict=True)):
        if found != counted:
            raise ValueError(
                f"image {i} has {found} features, but num_image_tokens says {counted}; encode once, and pass "
                "features and counts of that call, in its order"
            )


def check_places(mask: Tensor, lengths: Sequence[int]) -> None:
    """Compare features with the room for them: each image fills one run of placeholders, or its part of one.

    The total alone says nothing: features in another order can have the same.

    Args:
        mask: bool [B, L], where placeholders stand; on a GPU it is waited for.
        lengths: of each image's features, in the order of the prompts.

    Raises:
        ValueError: naming the first image that does not fit where it stands.
    """
    image = 0
    for row, room in _runs(mask.cpu()):
        left = room
        while left:
            while image < len(lengths) and lengths[image] == 0:
                image += 1
            if image == len(lengths):
                raise ValueError(
                    f"row {row} has {left} placeholders for which there is no image; pass the features of "
                    "all images, in the order of the prompts"
                )
            if lengths[image] > left:
                raise ValueError(
                    f"image {image} has {lengths[image]} features, but row {row} has room for {left} where "
                    "it stands; pass the features of all images, as counted, in the order of the prompts"
                )
            left -= lengths[image]
            image += 1
    for i in range(image, len(lengths)):
        if lengths[i]:
            raise ValueError(
                f"image {i} has {lengths[i]} features, but there is no placeholder left for it; pass the "
                "features of the images in the prompts, and of no others"
            )


def _runs(mask: Tensor) -> list[tuple[int, int]]:
    """Row and length of every run of true values, in order."""
    edges = torch.nn.functional.pad(mask.to(torch.int8), (1, 1)).diff(dim=1)
    starts, ends = (edges == 1).nonzero(), (edges == -1).nonzero()
    return list(zip(starts[:, 0].tolist(), (ends[:, 1] - starts[:, 1]).tolist(), strict=True))
