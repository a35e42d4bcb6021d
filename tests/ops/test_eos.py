"""What the case table does not say about the EOS ops: independence, errors, compilation, lengths."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from dove_ext import _C, ops
from dove_ext.ops import reference
from tests.cases.eos import one_rounding


def inputs(images: int = 3, positions: int = 70, vocabulary: int = 700) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(7)
    hidden = torch.randn(images, positions, 24, generator=generator)
    weight = torch.randn(vocabulary, 24, generator=generator)
    for image in range(images):
        hidden[image, (20 * image + 5) % positions] = 4 * weight[0]
    return hidden, weight


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_witness_changes_nothing(dtype: torch.dtype) -> None:
    hidden, weight = (t.to(dtype) for t in inputs())
    expected = reference.eos_scan(hidden, weight)
    assert 0 < expected.max() < hidden.shape[1]
    for witness in (None, [], [0], [3, 3, 3], list(range(700)), list(range(699, 0, -1))):
        given = None if witness is None else torch.tensor(witness, dtype=torch.int32)
        assert torch.equal(ops.eos_scan(hidden, weight, witness=given), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_images_do_not_depend_on_their_batch(dtype: torch.dtype) -> None:
    hidden, weight = (t.to(dtype) for t in inputs(images=40))
    together = ops.eos_probability(hidden, weight)
    first = ops.eos_scan(hidden, weight)
    for image in (0, 1, 17, 39):
        alone = hidden[image : image + 1]
        assert torch.equal(ops.eos_probability(alone, weight)[0], together[image])
        assert torch.equal(ops.eos_scan(alone, weight)[0], first[image])
        # Also position by position, as blocks of time positions are run.
        assert torch.equal(ops.eos_probability(alone[:, 3:36], weight)[0], together[image, 3:36])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("vocabulary", "eos_id"), [(2, 0), (2, 1), (700, 0), (700, 350)])
@pytest.mark.parametrize("kernels", [True, False])
def test_log_odds_go_on_where_the_probability_is_1(
    dtype: torch.dtype, vocabulary: int, eos_id: int, kernels: bool
) -> None:
    hidden, weight = (t.to(dtype) for t in inputs(vocabulary=vocabulary))
    hidden[:, 10] = 6 * weight[eos_id]  # p_eos is 1
    hidden[:, 11] = 9 * weight[eos_id]
    bias = torch.linspace(-1, 1, vocabulary)
    before = ops.set_backend("auto" if kernels else "torch")
    try:
        actual = ops.eos_log_odds(hidden, weight, bias, eos_id=eos_id)
        probability = ops.eos_probability(hidden, weight, bias, eos_id=eos_id)
    finally:
        ops.set_backend(before)
    logits = hidden.double() @ weight.double().T + bias
    others = torch.cat([logits[..., :eos_id], logits[..., eos_id + 1 :]], -1).logsumexp(-1)
    expected = logits[..., eos_id] - others
    torch.testing.assert_close(actual.double(), expected, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(actual.sigmoid(), probability, rtol=1e-4, atol=1e-7)
    assert (probability[:, 10:12] == 1).all() and (actual[:, 11] > actual[:, 10] + 20).all()


def test_log_odds_need_another_word() -> None:
    with pytest.raises(ValueError, match="EOS needs another word"):
        ops.eos_log_odds(*inputs(vocabulary=1))


@pytest.mark.parametrize("isa", [1, 2])
@pytest.mark.parametrize("vocabulary", [2, 600])  # decided with the witnesses, and by the whole scan
def test_products_in_float32_are_fused_with_their_sum(vocabulary: int, isa: int) -> None:
    best = max(i for i in range(3) if _C.force_cpu_isa(i))
    if not _C.force_cpu_isa(isa):
        pytest.skip("this machine or build lacks it")
    try:
        assert ops.eos_scan(**one_rounding(vocabulary)).tolist() == [1]
        _, maximum, _ = torch.ops.dove.eos_probability(**one_rounding(vocabulary), bias=None, eos_id=0)
    finally:
        _C.force_cpu_isa(best)
    assert maximum.tolist() == [[2**-24]]


@pytest.mark.parametrize("vocabulary", [2, 700])
def test_compiles_without_graph_breaks(vocabulary: int) -> None:
    hidden, weight = inputs(vocabulary=vocabulary)

    def run(hidden: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        first = ops.eos_scan(hidden, weight)
        kept = ops.zero_tail(hidden, first)
        return kept, first, ops.lengths_to_cu_seqlens(first), ops.eos_probability(hidden, weight)

    def results(function: Any) -> list[Tensor]:
        leaves = [t.clone().requires_grad_() for t in (hidden, weight)]
        kept, first, ends, probability = function(*leaves)
        gradients = torch.autograd.grad(kept.square().sum() + probability.sum(), leaves)
        return [kept, first, ends, probability, *gradients]

    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    for actual, expected in zip(results(compiled), results(run), strict=True):
        torch.testing.assert_close(actual, expected)


def test_lengths_to_cu_seqlens() -> None:
    ends = ops.lengths_to_cu_seqlens(torch.tensor([3, 0, 5], dtype=torch.int32))
    assert ends.dtype == torch.int32
    assert ends.tolist() == [0, 3, 3, 8]
    assert ops.lengths_to_cu_seqlens(torch.zeros(0, dtype=torch.int32)).tolist() == [0]


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"eos_id": 700}, ValueError, r"eos_id must be in 0..699, got 700"),
        ({"weight": torch.zeros(700, 23)}, ValueError, r"weight \[V, D\]"),
        ({"weight": torch.zeros(700, 24, dtype=torch.bfloat16)}, TypeError, "weight must be torch.float32"),
        ({"bias": torch.zeros(699)}, ValueError, r"bias must be \[700\]"),
        ({"witness": torch.zeros(3)}, TypeError, "witness must be int32"),
        ({"witness": torch.tensor([5, 700], dtype=torch.int32)}, RuntimeError, "an index is out of range"),
        ({"witness": torch.tensor([-1], dtype=torch.int32)}, RuntimeError, "an index is out of range"),
    ],
)
def test_wrong_arguments(change: dict[str, Any], error: type[Exception], text: str) -> None:
    hidden, weight = inputs()
    with pytest.raises(error, match=text):
        ops.eos_scan(**{"hidden": hidden, "weight": weight, **change})


@pytest.mark.parametrize("lengths", [[1, 2], [-1, 2, 3], [1, 2, 71]])
def test_zero_tail_refuses_wrong_lengths(lengths: list[int]) -> None:
    with pytest.raises(RuntimeError, match="lengths"):
        ops.zero_tail(inputs()[0], torch.tensor(lengths, dtype=torch.int32))
