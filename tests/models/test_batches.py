"""What `encode` and `decode` queue on a GPU before they read anything from it, and what they read."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from dove_ext import DoveModel, DoveTokens
from dove_ext.errors import ImageError
from dove_ext.images.prepare import square_images
from dove_ext.models import generator
from dove_ext.models.batches import Encoded, join
from dove_ext.models.query import Query
from dove_ext.models.stack import Kept
from dove_ext.ops import backend, library
from dove_ext.tokens.lengths import LengthRule
from tests.models.micro import SLOTS, micro, photos

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def on_fake_cuda(monkeypatch: pytest.MonkeyPatch) -> Iterator[DoveModel]:
    """A model whose tensors say that they are on a GPU; any read of a value of theirs raises."""
    for module in (backend, library):
        monkeypatch.setattr(module, "gpu_served", lambda index: True)
    model = micro()
    with FakeTensorMode():
        for module in model.modules():
            for held in (module._parameters, module._buffers):
                for name, tensor in held.items():
                    if tensor is not None:
                        there = torch.empty(tensor.shape, dtype=tensor.dtype, device="cuda")
                        held[name] = nn.Parameter(there) if isinstance(tensor, nn.Parameter) else there
        yield model


@pytest.mark.parametrize(
    "rule",
    [LengthRule(), LengthRule(num_tokens=7), LengthRule(eos_threshold=0.3), LengthRule(target_psnr=30.0)],
    ids=str,
)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_a_batch_is_queued_without_a_wait(
    on_fake_cuda: DoveModel, rule: LengthRule, dtype: torch.dtype
) -> None:
    pixels = torch.empty(2, 3, 32, 32, dtype=dtype, device="cuda")
    with torch.no_grad():
        encoded = on_fake_cuda._encode_batch(pixels, None, rule=rule, whole_curve=False, block_size=None)
    assert encoded.tokens.shape == (2 * rule.most(SLOTS), 64)  # packed, with room for all
    assert encoded.lengths.shape == (2,)


@pytest.mark.parametrize("block", [None, 20])
@pytest.mark.parametrize("see", [False, True])
def test_queries_of_several_lengths_are_queued_without_a_wait(
    on_fake_cuda: DoveModel, monkeypatch: pytest.MonkeyPatch, block: int | None, see: bool
) -> None:
    monkeypatch.setattr(generator.StopCheck, "all_ended", lambda self, ended: False)  # this one waits
    pixels = torch.empty(2, 3, 32, 32, dtype=torch.uint8, device="cuda")
    lengths = torch.empty(2, dtype=torch.int32, device="cuda")
    query = Query(torch.empty(2, 5, 64, device="cuda"), lengths).rows(slice(0, 2)).padded(8)
    with torch.no_grad():
        condition = on_fake_cuda.condition(pixels / 255, query)
        if see:
            condition = on_fake_cuda.generator.see(condition)
        encoded = on_fake_cuda._encode_condition(
            condition, pixels, rule=LengthRule(), whole_curve=False, block_size=block
        )
    assert encoded.tokens.shape == (2 * SLOTS, 64) and encoded.lengths.shape == (2,)


def test_a_shared_budget_is_queued_without_a_wait(on_fake_cuda: DoveModel) -> None:
    rule = LengthRule(token_budget=50)
    pixels = torch.empty(3, 3, 32, 32, dtype=torch.uint8, device="cuda")
    with torch.no_grad():
        batches = [
            on_fake_cuda._encode_batch(part, None, rule=rule, whole_curve=True, ranked=True, block_size=None)
            for part in pixels.split(2)
        ]
        encoded = join(batches, rule, [])
    assert encoded.tokens.shape == (50, 64) and encoded.lengths.shape == (3,)
    assert encoded.p_eos is not None and encoded.p_eos.shape == (3, SLOTS)


def test_exact_counts_are_never_read(on_fake_cuda: DoveModel) -> None:
    pixels = torch.empty(3, 3, 32, 32, dtype=torch.uint8, device="cuda")
    rule = LengthRule(num_tokens=5)
    with torch.no_grad():
        batches = [
            on_fake_cuda._encode_batch(part, None, rule=rule, whole_curve=False, block_size=None)
            for part in pixels.split(2)
        ]
        assert join(batches, rule, [])[0].shape == (15, 64)


def test_decode_waits_for_nothing(on_fake_cuda: DoveModel) -> None:
    tokens = DoveTokens(
        torch.empty(9, 64, device="cuda"), torch.empty(4, dtype=torch.int32, device="cuda"), SLOTS
    )
    assert on_fake_cuda.decode(tokens, batch_size=2).shape == (3, 3, 32, 32)


def test_decode_to_kept_tokens_alone_waits_for_nothing(
    on_fake_cuda: DoveModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(generator.FEWEST_DROPPED, "cuda", 1)
    on_fake_cuda.token_decoder.attend_padding = False
    kept = []
    monkeypatch.setattr(Kept, "of", lambda *args, of=Kept.of: kept.append(args[1]) or of(*args))
    tokens = DoveTokens(
        torch.empty(9, 64, device="cuda"), torch.empty(4, dtype=torch.int32, device="cuda"), SLOTS
    )
    assert on_fake_cuda.decode(tokens).shape == (3, 3, 32, 32)
    assert kept == [9]  # rows of packed tokens
    assert on_fake_cuda.decode(tokens, batch_size=2).shape == (3, 3, 32, 32)
    assert kept == [9]  # of a part nobody knows it


def packed_with_room(lengths: list[int], fill: float) -> Encoded:
    """As a GPU packs: rows of images, then rows that nobody wrote."""
    rows = [torch.full((n, 2), fill + i) for i, n in enumerate(lengths)]
    return Encoded(torch.cat([*rows, torch.full((5, 2), float("nan"))]), torch.tensor(lengths).int(), None)


def test_room_behind_the_tokens_is_cut_off() -> None:
    tokens, lengths, p_eos, *_ = join(
        [packed_with_room([2, 3], 0.0), packed_with_room([1], 10.0).of_first(1)], LengthRule(), []
    )
    assert tokens[:, 0].tolist() == [0, 0, 1, 1, 1, 10]
    assert lengths.tolist() == [2, 3, 1] and p_eos is None


def test_fewer_images_than_were_run() -> None:
    tokens, lengths, *_ = join([packed_with_room([2, 3, 1, 1], 0.0).of_first(2)], LengthRule(), [])
    assert tokens[:, 0].tolist() == [0, 0, 1, 1, 1] and lengths.tolist() == [2, 3]


@pytest.mark.parametrize("rule", [LengthRule(), LengthRule(num_tokens=2)], ids=str)
@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([0.0, 255.0], r"images\[1\] \(tensor\) has values from 0 to 255; .*divide by 255"),
        ([float("nan"), float("nan")], r"images\[1\] \(tensor\) holds NaN"),
    ],
)
def test_ranges_that_were_not_looked_at_are_read_with_the_lengths(
    rule: LengthRule, values: list[float], message: str
) -> None:
    unread = [
        ("images[0] (tensor)", torch.tensor([0.0, 1.0], dtype=torch.float64)),
        ("images[1] (tensor)", torch.tensor(values, dtype=torch.float64)),
    ]
    with pytest.raises(ImageError, match=message):
        join([packed_with_room([2, 2], 0.0)], rule, unread)
    assert join([packed_with_room([2, 2], 0.0)], rule, unread[:1])[0].shape == (4, 2)


def test_8_bit_pixels_of_the_right_size_stay_8_bit() -> None:
    pictures = photos(2)
    assert square_images(pictures, 32).pixels.dtype == torch.uint8
    assert (
        square_images([pictures[0], pictures[1].numpy().transpose(1, 2, 0)], 32).pixels.dtype == torch.uint8
    )
    resized: Any = square_images([pictures[0], pictures[1][:, :20]], 32).pixels
    assert resized.dtype == torch.float32 and float(resized.max()) <= 1
    assert torch.equal(resized[0], pictures[0].float() / 255)


def test_floats_on_a_gpu_are_prepared_without_a_wait() -> None:
    with FakeTensorMode():
        images: list[Tensor] = [
            torch.empty(3, 40, 30, device="cuda"),
            torch.empty(3, 32, 32, dtype=torch.uint8, device="cuda"),
        ]
        squares = square_images(images, 32)
    assert [name for name, _ in squares.unread] == ["images[0] (tensor)"]
    assert squares.pixels.shape == (2, 3, 32, 32) and squares.pixels.is_cuda


def test_floats_that_leave_a_gpu_are_looked_at_at_once() -> None:
    """Their range would lie on another device than the lengths, with which it is read."""
    with FakeTensorMode():
        image = torch.empty(3, 32, 32, device="cuda:1")
        (_, values), *_ = square_images(image, 32, device=torch.device("cuda:0")).unread
        assert values.device == torch.device("cuda:0")
        with pytest.raises(DataDependentOutputException):  # a read
            square_images(image, 32, device=torch.device("cpu"))
