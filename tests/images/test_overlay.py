"""A relevance map over its picture."""

from __future__ import annotations

import torch

from dove_ext.images.overlay import EDGE, overlay


def test_what_matters_keeps_its_colours_and_the_rest_fades() -> None:
    picture = torch.tensor([0.9, 0.2, 0.1])[:, None, None].expand(3, 32, 32)
    where = torch.full((4, 4), 0.01)
    where[1:3, 1:3] = 0.2  # far from 1: what places count beside each other is drawn
    drawn = overlay(picture[None], where[None])[0]
    torch.testing.assert_close(drawn[:, 15, 15], picture[:, 15, 15])
    corner = drawn[:, 0, 0]
    assert corner.max() - corner.min() < 0.1 and corner.min() > 0.7, "pale and grey"
    line = (drawn == torch.tensor(EDGE)[:, None, None]).all(0)
    expected = torch.zeros(32, 32, dtype=torch.bool)
    expected[7:25, 7:25] = True
    expected[8:24, 8:24] = False
    assert torch.equal(line, expected), "around the cells that count half as much or more"


def test_a_map_that_is_the_same_everywhere_changes_nothing() -> None:
    pictures = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(overlay(pictures, torch.full((2, 4, 4), 0.3)), pictures)


def test_maps_of_a_batch_are_stretched_alone() -> None:
    pictures = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    maps = torch.rand(2, 4, 4, generator=torch.Generator().manual_seed(1))
    both = overlay(pictures, maps)
    torch.testing.assert_close(overlay(pictures[1:], 5 * maps[1:]), both[1:])
    assert not torch.allclose(overlay(pictures[1:], maps[:1]), both[1:])
    assert both.min() >= 0 and both.max() <= 1
