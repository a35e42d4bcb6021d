"""Properties of the emulated attention kernels that one row of the table cannot show."""

from __future__ import annotations

from types import ModuleType

import pytest
import torch
from torch import Tensor

from dove_ext import ops
from dove_ext.ops import reference
from tests.simt.emulated import emulation

pytestmark = pytest.mark.usefixtures("one_thread")


def _inputs(batch: int, positions: int, heads: int = 1) -> list[Tensor]:
    generator = torch.Generator().manual_seed(positions)
    shape = (batch, positions, heads, 32)
    return [torch.randn(shape, generator=generator).bfloat16() for _ in range(4)]


def _run(q: Tensor, k: Tensor, v: Tensor, grad: Tensor) -> list[Tensor]:
    q, k, v = (x.clone().requires_grad_() for x in (q, k, v))
    out = ops.attention(q, k, v, prefix=20)
    return [out.detach(), *torch.autograd.grad(out, (q, k, v), grad)]


def test_a_result_depends_neither_on_the_batch_nor_on_the_tile_it_chooses(simt: ModuleType) -> None:
    inputs = _inputs(8, 70)  # enough blocks for tiles of 128 queries; one image alone gets tiles of 64
    with emulation(simt):
        together = _run(*inputs)
        alone = _run(*(x[3:4] for x in inputs))
    for a, b in zip(together, alone, strict=True):
        assert torch.equal(a[3:4], b)


def test_results_are_the_same_bits_under_every_schedule(simt: ModuleType) -> None:
    inputs = _inputs(1, 130)
    results = []
    for seed in range(4):
        with emulation(simt, seed):
            results.append(_run(*inputs))
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            assert torch.equal(a, b)


def test_gradients_where_that_of_the_output_is_uneven(simt: ModuleType) -> None:
    """The table's changes so slowly that a lane could meet the wrong part of its row of the output."""
    inputs = _inputs(1, 40)
    with emulation(simt):
        _, *actual = _run(*inputs)
    q, k, v = (x.double().requires_grad_() for x in inputs[:3])
    out = reference.attention(q, k, v, prefix=20)
    for low, exact in zip(actual, torch.autograd.grad(out, (q, k, v), inputs[3].double()), strict=True):
        assert (low - exact).norm() < 0.01 * exact.norm()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_wrong_lengths_on_the_device_touch_nothing_outside(simt: ModuleType, dtype: torch.dtype) -> None:
    q, k, v, _ = (x[0].to(dtype) for x in _inputs(1, 40))
    table = torch.randn(30, 8)  # too few rows for 40 positions
    wrong = torch.tensor([-7, 90, 12], dtype=torch.int32)
    with emulation(simt):
        out = ops.attention(q, k, v, cu_seqlens_q=wrong, cu_seqlens_k=wrong, rotary=table)
        lens = torch.tensor([99], dtype=torch.int32)
        ops.attention(q[None], k[None], v[None], kv_lens=lens)
    assert out.shape == q.shape


def test_head_dimensions_without_a_kernel_are_refused_with_the_remedy(simt: ModuleType) -> None:
    q = torch.zeros(1, 4, 1, 144)
    with (
        emulation(simt),
        pytest.raises(RuntimeError, match=r"multiple of 16 up to 128, got 144; call dove_ext\.set_backend"),
    ):
        ops.attention(q, q, q)


def test_rows_that_are_not_aligned_are_copied_first(simt: ModuleType) -> None:
    wide = torch.randn(1, 20, 1, 3 * 32 + 1).bfloat16()
    q, k, v = (wide[..., i * 32 + 1 : (i + 1) * 32 + 1] for i in range(3))
    with emulation(simt):
        odd = ops.attention(q, k, v)
        even = ops.attention(q.contiguous(), k.contiguous(), v.contiguous())
    assert torch.equal(odd, even)
