"""Pictures that are not photographs: the same from the same seed, and half of the kinds held back."""

from __future__ import annotations

import pytest
import torch

from dove_ext.images.drawn import HELD_BACK, TRAINED, draw


def test_half_of_the_kinds_is_held_back() -> None:
    assert len(TRAINED) == len(HELD_BACK) >= 8
    assert not {*TRAINED} & {*HELD_BACK}


@pytest.mark.parametrize("kind", [*TRAINED, *HELD_BACK])
def test_a_seed_is_a_picture(kind: str) -> None:
    pictures = [draw(kind, seed) for seed in range(12)]
    assert all(p.shape == (3, 256, 256) and p.dtype == torch.uint8 for p in pictures)
    assert torch.equal(pictures[3], draw(kind, 3))
    assert len({p.numpy().tobytes() for p in pictures}) >= 8
    colours = [len(p.flatten(1).unique(dim=1).T) for p in pictures[:4]]
    assert colours == [1] * 4 if kind == "flat" else min(colours) >= 2  # there is something in it


@pytest.mark.parametrize("size", [64, 100, 300])
def test_other_sizes(size: int) -> None:
    for kind in (*TRAINED, *HELD_BACK):
        assert all(draw(kind, seed, size).shape == (3, size, size) for seed in range(4)), kind


def test_refusals() -> None:
    with pytest.raises(ValueError, match="there is no kind 'cats'; choose from words, terminal"):
        draw("cats", 0)
    with pytest.raises(ValueError, match="at least 64 pixels, got 32"):
        draw("words", 0, 32)
