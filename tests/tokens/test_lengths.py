"""Lengths for a shared budget, against a search that keeps one token after the other."""

from __future__ import annotations

from dataclasses import fields
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dove_ext.config import IMAGE_LENGTHS
from dove_ext.tokens.lengths import LengthRule, lengths_for_budget, lengths_within


def test_all_controls_but_the_budget_are_of_an_image_by_itself() -> None:
    assert {field.name for field in fields(LengthRule)} == {*IMAGE_LENGTHS, "token_budget"}


def one_by_one(p_eos: Tensor, budget: int, least: int) -> list[int]:
    """Start with `least` tokens an image; give each further one to the image least ready to stop."""
    rows = p_eos.tolist()
    lengths = [least] * len(rows)
    for _ in range(budget - least * len(rows)):
        # Keeping token n + 1 (1-based) passes the stops at the 0-based positions 1..n; the first token is
        # kept in any case, so position 0 counts from the second token on.
        open_ = [b for b in range(len(rows)) if lengths[b] < len(rows[b])]
        chosen = min(open_, key=lambda b: (max(rows[b][: lengths[b] + 1]), lengths[b], b))
        lengths[chosen] += 1
    return lengths


@st.composite
def curves(draw: st.DrawFn) -> tuple[Tensor, int, int]:
    images = draw(st.integers(1, 5))
    slots = draw(st.integers(1, 9))
    # Few distinct values: ties are common.
    values = draw(st.lists(st.integers(0, 4), min_size=images * slots, max_size=images * slots))
    least = draw(st.integers(1, slots))
    budget = draw(st.integers(images * least, images * slots))
    return torch.tensor(values).float().div(4).reshape(images, slots), budget, least


@settings(max_examples=150, deadline=None)
@given(curves())
def test_equals_one_by_one(case: tuple[Tensor, int, int]) -> None:
    p_eos, budget, least = case
    before = p_eos.clone()
    lengths = lengths_for_budget(p_eos, budget, least)
    assert lengths.dtype == torch.int32
    assert lengths.tolist() == one_by_one(p_eos, budget, least)
    assert int(lengths.sum()) == budget
    most = torch.full_like(lengths, p_eos.shape[1])
    assert torch.equal(lengths_within(p_eos, most, budget, least), lengths)
    assert torch.equal(p_eos, before)


@settings(max_examples=50, deadline=None)
@given(curves())
def test_more_budget_never_shortens_an_image(case: tuple[Tensor, int, int]) -> None:
    p_eos, _, least = case
    images, slots = p_eos.shape
    lengths = [lengths_for_budget(p_eos, n, least) for n in range(images * least, images * slots + 1)]
    for a, b in pairwise(lengths):
        assert (b - a).sum() == 1 and (b >= a).all()


def test_equal_images_share_equally() -> None:
    assert lengths_for_budget(torch.full((3, 8), 0.3), 10).tolist() == [4, 3, 3]


def test_the_image_ready_to_stop_gives_way() -> None:
    p_eos = torch.tensor([[0.0, 0.0, 0.9, 0.0, 0.0], [0.0, 0.1, 0.1, 0.1, 0.1]])
    assert lengths_for_budget(p_eos, 7).tolist() == [2, 5]


def test_cut_is_one_threshold() -> None:
    """Without ties the lengths are those of some `eos_threshold`."""
    p_eos = torch.rand(6, 20, generator=torch.Generator().manual_seed(0)).sort(dim=1).values
    lengths = lengths_for_budget(p_eos, 60)
    last_kept = max(float(row[n - 1]) for row, n in zip(p_eos, lengths.tolist(), strict=True) if n > 1)
    first_cut = min(float(row[n]) for row, n in zip(p_eos, lengths.tolist(), strict=True) if n < 20)
    assert last_kept < first_cut


@pytest.mark.parametrize(("budget", "least"), [(0, 1), (1, 1), (7, 1), (3, 2)])
def test_out_of_range(budget: int, least: int) -> None:
    words = f"the budget must be between {2 * least} and 6 tokens, got {budget}"
    with pytest.raises(ValueError, match=words):
        lengths_for_budget(torch.zeros(2, 3), budget, least)
