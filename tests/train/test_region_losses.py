"""Eq. 5 to 7 and L_pen against loops over boxes, pixels and positions."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from dove_ext.images.regions import pixel_box
from dove_train.losses import mean_squared_error, paper_eos_loss, reconstruction_loss
from dove_train.region_losses import (
    LAMBDA_OUTSIDE,
    irrelevant_loss,
    length_penalty,
    outside,
    query_loss,
    relevant_loss,
)

SIZE = 6
WHOLE = [0.0, 0.0, 1.0, 1.0]
# Several images with different numbers of boxes; some overlap, one has a half pixel's width, one is a point.
BOXES = [
    [[0.0, 0.0, 0.5, 0.5]],
    [[0.2, 0.3, 0.9, 0.6], [0.5, 0.5, 1.0, 1.0], [0.34, 0.1, 0.41, 0.9]],
    [WHOLE],
    [[1.0, 1.0, 1.0, 1.0], [0.0, 0.6, 0.7, 1.0]],
]
# Their pixels, by hand: edges times 6, rounded.
PIXELS = [
    [(0, 0, 3, 3)],
    [(1, 2, 5, 4), (3, 3, 6, 6), (2, 1, 3, 5)],
    [(0, 0, 6, 6)],
    [(5, 5, 6, 6), (0, 4, 4, 6)],
]


def tensors() -> list[Tensor]:
    return [torch.tensor(own) for own in BOXES]


def pictures() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    seen, wanted = (torch.rand(4, 3, SIZE, SIZE, generator=generator) * 2 - 1 for _ in range(2))
    return seen.requires_grad_(), wanted


def uneven(a: Tensor, b: Tensor) -> Tensor:
    """A loss that tells where in a picture an error is."""
    weight = torch.arange(1.0, SIZE * SIZE + 1).view(SIZE, SIZE)
    return ((a - b).square() * weight).flatten(1).mean(1)


def at(part: Tensor, y: int, x: int) -> Tensor:
    """Pixel y, x of a [3, h, w] picture that is enlarged to SIZE: between its four neighbours."""
    height, width = part.shape[1:]
    row = max(0.0, (y + 0.5) * height / SIZE - 0.5)
    column = max(0.0, (x + 0.5) * width / SIZE - 0.5)
    top, left = int(row), int(column)
    bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
    down, across = row - top, column - left
    above = (1 - across) * part[:, top, left] + across * part[:, top, right]
    below = (1 - across) * part[:, bottom, left] + across * part[:, bottom, right]
    return (1 - down) * above + down * below


def plain_relevant(seen: Tensor, wanted: Tensor) -> list[Tensor]:
    """Eq. 5 of `uneven`, a pixel at a time."""
    losses = []
    for image, own in enumerate(PIXELS):
        total = torch.zeros(())
        for left, top, right, bottom in own:
            a, b = (x[image, :, top:bottom, left:right] for x in (seen, wanted))
            for y in range(SIZE):
                for x in range(SIZE):
                    error = (at(a, y, x) - at(b, y, x)).square().sum()
                    total = total + error * (y * SIZE + x + 1) / (3 * SIZE * SIZE)
        losses.append(total / len(own))
    return losses


def plain_irrelevant(seen: Tensor, wanted: Tensor) -> list[Tensor]:
    """Eq. 6, a pixel at a time."""
    losses = []
    for image, own in enumerate(PIXELS):
        errors = [
            (seen[image, :, y, x] - wanted[image, :, y, x]).square().mean()
            for y in range(SIZE)
            for x in range(SIZE)
            if not any(left <= x < right and top <= y < bottom for left, top, right, bottom in own)
        ]
        losses.append(sum(errors, torch.zeros(())) / max(1, len(errors)))
    return losses


def test_boxes_become_whole_pixels() -> None:
    assert [[pixel_box(box, SIZE) for box in own] for own in BOXES] == PIXELS


@pytest.mark.parametrize(
    ("box", "pixels"),
    [
        ([0.0, 0.0, 0.0, 0.0], (0, 0, 1, 1)),
        ([1.0, 0.0, 1.0, 1.0], (7, 0, 8, 8)),
        ([0.51, 0.52, 0.53, 0.53], (4, 4, 5, 5)),
        ([0.49, 0.1, 0.51, 0.2], (4, 1, 5, 2)),
    ],
)
def test_a_box_smaller_than_a_pixel_is_widened_to_one(
    box: list[float], pixels: tuple[int, int, int, int]
) -> None:
    assert pixel_box(box, 8) == pixels


@pytest.mark.parametrize(
    "box", [[-0.1, 0, 1, 1], [0, 0, 1, 1.01], [0.6, 0, 0.5, 1], [0, 1, 1, 0], [0, 0, math.nan, 1]]
)
def test_what_is_no_box_is_refused(box: list[float]) -> None:
    seen, wanted = pictures()
    with pytest.raises(ValueError, match="a box must be fractions"):
        relevant_loss(seen[:1], wanted[:1], torch.tensor([[box]]), uneven)


def test_every_image_needs_boxes() -> None:
    seen, wanted = pictures()
    with pytest.raises(ValueError, match="boxes must be those of 4 images, got 3"):
        relevant_loss(seen, wanted, tensors()[:3], uneven)
    with pytest.raises(ValueError, match=r"image 1 needs boxes \[n, 4\] with n at least 1, got \[0, 4\]"):
        relevant_loss(seen, wanted, [*tensors()[:1], torch.zeros(0, 4), *tensors()[2:]], uneven)


def test_relevant_loss_is_the_mean_over_enlarged_boxes() -> None:
    seen, wanted = pictures()
    losses, expected = relevant_loss(seen, wanted, tensors(), uneven), plain_relevant(seen, wanted)
    assert losses.shape == (4,) and losses.dtype == torch.float32
    torch.testing.assert_close(losses, torch.stack(expected))
    assert losses[2].item() == pytest.approx(uneven(seen, wanted)[2].item())  # all of an image is L_rec
    share = torch.tensor([1.0, -2.0, 3.0, 0.5])
    (ours,) = torch.autograd.grad(losses @ share, seen)
    (plain,) = torch.autograd.grad(torch.stack(expected) @ share, seen)
    torch.testing.assert_close(ours, plain)
    assert ours[0, :, 3:].abs().max() == 0 and ours[0, :, :3, :3].abs().min() > 0


def test_equal_counts_may_come_as_one_tensor() -> None:
    seen, wanted = pictures()
    boxes = torch.tensor([[WHOLE, own[0]] for own in BOXES])
    one = relevant_loss(seen, wanted, boxes, mean_squared_error)
    assert torch.equal(one, relevant_loss(seen, wanted, list(boxes), mean_squared_error))


def test_an_image_does_not_see_the_boxes_of_others() -> None:
    seen, wanted = pictures()
    together = relevant_loss(seen, wanted, tensors(), reconstruction_loss)
    for i in range(4):
        part = slice(i, i + 1)
        alone = relevant_loss(seen[part], wanted[part], tensors()[part], reconstruction_loss)
        assert alone.item() == pytest.approx(together[i].item(), rel=1e-6)


def test_irrelevant_loss_is_the_error_outside_all_boxes() -> None:
    seen, wanted = pictures()
    mask = outside(tensors(), SIZE, 4)
    assert mask.dtype == torch.bool and mask.flatten(1).any(1).tolist() == [True, True, False, True]
    losses, expected = irrelevant_loss(seen, wanted, mask), torch.stack(plain_irrelevant(seen, wanted))
    torch.testing.assert_close(losses, expected)
    assert losses[2] == 0 and losses[[0, 1, 3]].min() > 0
    (ours,) = torch.autograd.grad(losses.sum(), seen)
    (plain,) = torch.autograd.grad(expected.sum(), seen)
    torch.testing.assert_close(ours, plain)
    assert torch.equal(ours.abs().amax(1) > 0, mask)


def test_query_loss_weighs_the_outside_down() -> None:
    seen, wanted = pictures()
    relevant = relevant_loss(seen, wanted, tensors(), uneven)
    irrelevant = irrelevant_loss(seen, wanted, outside(tensors(), SIZE, 4))
    assert LAMBDA_OUTSIDE == 1e-10
    large = query_loss(relevant.double(), 1e10 * irrelevant.double())
    torch.testing.assert_close(large, (relevant + irrelevant).double())
    (grad,) = torch.autograd.grad(query_loss(relevant, irrelevant).sum(), seen)
    (inside,) = torch.autograd.grad(relevant_loss(seen, wanted, tensors(), uneven).sum(), seen)
    (rest,) = torch.autograd.grad(irrelevant_loss(seen, wanted, outside(tensors(), SIZE, 4)).sum(), seen)
    torch.testing.assert_close(grad, inside + 1e-10 * rest, rtol=1e-6, atol=0)
    assert 0 < grad[0, :, 5, 5].abs().max() < 1e-10  # small, not lost


def test_length_penalty_against_a_loop() -> None:
    generator = torch.Generator().manual_seed(5)
    p = torch.rand(7, 5, generator=generator).requires_grad_()
    stops = torch.tensor([3, 3, 3, 0, 1, 5, 2], dtype=torch.int32)  # the last but one has no EOS
    irrelevant = torch.tensor([0.1, 0.3, 0.2, 0.1, 0.1, 0.1, 0.0], requires_grad=True)
    some = torch.tensor([True, True, True, True, True, True, False])
    losses = length_penalty(p, stops, irrelevant, some, threshold=0.2)
    for row in range(7):
        m = min(int(stops[row]) + 1, 5)
        expected = 0.0
        if irrelevant[row] < 0.2 and some[row] and m >= 2:
            for i in range(1, m):
                expected -= p[row, i - 1].item() / (m - 1)
        assert losses[row].item() == pytest.approx(expected)
    assert (losses != 0).tolist() == [True, False, False, False, True, True, False]
    losses.sum().backward()
    assert irrelevant.grad is None
    assert p.grad is not None
    assert p.grad[0].tolist() == pytest.approx([-1 / 3] * 3 + [0, 0])
    assert p.grad[5].tolist() == [-0.25] * 4 + [0]
    assert p.grad[[1, 2, 3, 6]].abs().max() == 0


def test_the_penalty_is_the_second_case_of_the_papers_rule() -> None:
    p = torch.rand(3, 5, generator=torch.Generator().manual_seed(6))
    stops = torch.tensor([4, 2, 5], dtype=torch.int32)
    low = torch.zeros(3)
    rule = paper_eos_loss(p, stops, low, threshold=1.0)
    assert torch.equal(length_penalty(p, stops, low, torch.ones(3, dtype=torch.bool), 1.0), rule)
