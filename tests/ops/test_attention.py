"""What the case table cannot say about attention: invariances, compilation, and its error messages."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from dove_ext import _C, ops
from dove_ext.ops import attention_reference, reference
from tests.cases.attention import _rotary as rotary_table

DTYPES = (torch.float32, torch.bfloat16)


def projection(batch: int, length: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(length)
    qkv = torch.randn(batch, length, 2, 192, generator=generator).to(dtype)
    q, k, v = qkv.split(64, dim=-1)
    return q, k, v


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_blocks_against_the_cache_equal_one_pass(dtype: torch.dtype) -> None:
    q, k, v = projection(2, 150, dtype)
    table = rotary_table(150, 16)
    whole = ops.attention(q, k, v, prefix=20, rotary=table)
    for start, end in ((20, 21), (21, 64), (64, 150)):
        block = ops.attention(q[:, start:end], k[:, :end], v[:, :end], prefix=20, rotary=table)
        torch.testing.assert_close(
            block, whole[:, start:end], rtol=1e-5, atol=1e-5 if dtype == DTYPES[0] else 8e-3
        )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_sequence_does_not_depend_on_its_batch(dtype: torch.dtype) -> None:
    q, k, v = projection(3, 70, dtype)
    batch = ops.attention(q, k, v)
    for i in range(3):
        assert torch.equal(ops.attention(q[i : i + 1], k[i : i + 1], v[i : i + 1])[0], batch[i])
    cu = torch.tensor([0, 70, 140, 210], dtype=torch.int32)
    packed = ops.attention(*(x.flatten(0, 1) for x in (q, k, v)), cu_seqlens_q=cu, cu_seqlens_k=cu)
    assert torch.equal(packed, batch.flatten(0, 1))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gradients_are_the_same_on_any_number_of_threads(dtype: torch.dtype) -> None:
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            inputs = [x.detach().requires_grad_() for x in projection(2, 130, dtype)]
            out = ops.attention(*inputs, rotary=rotary_table(130, 16))
            results.append(torch.autograd.grad(out.float().square().sum(), inputs))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_a_later_key_never_reaches_an_earlier_tile() -> None:
    q, k, v = (x.clone() for x in projection(1, 200))
    before = ops.attention(q, k, v)
    k[:, 150:], v[:, 150:] = 1e4, -1e4
    assert torch.equal(ops.attention(q, k, v)[:, :150], before[:, :150])


def test_compiles_into_one_graph() -> None:
    table = rotary_table(40, 16)

    def loss(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return ops.attention(q, k, v, prefix=3, rotary=table).square().sum()

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    inputs = [x.detach().requires_grad_() for x in projection(2, 40)]
    plain = torch.autograd.grad(loss(*inputs), inputs)
    for ours, theirs in zip(torch.autograd.grad(compiled(*inputs), inputs), plain, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_numerical_gradient() -> None:
    inputs = [x.detach().double().requires_grad_() for x in projection(1, 5)]
    table = rotary_table(5, 16).double()
    assert torch.autograd.gradcheck(
        lambda q, k, v: reference.attention(q, k, v, rotary=table), inputs, fast_mode=True
    )


def test_reference_of_the_operators_agrees_with_the_kernels() -> None:
    """Devices without kernels run these, and no test here has such a device."""
    q, k, v = projection(2, 33)
    lens = torch.tensor([33, 9], dtype=torch.int32)
    cu = torch.tensor([0, 33, 66], dtype=torch.int32)
    flat = [x.flatten(0, 1) for x in (q, k, v)]
    table = rotary_table(33, 16)
    for tensors, keys in (
        ([q, k, v], (table, None, None, lens, 4, 0.1)),
        (flat, (table, cu, cu, None, 0, 0.125)),
    ):
        out, lse = torch.ops.dove.attention(*tensors, *keys)
        plain_out, plain_lse = attention_reference.attention_op(*tensors, *keys)
        torch.testing.assert_close(out, plain_out, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(lse, plain_lse, rtol=1e-4, atol=1e-5)
        saved = (torch.ones_like(out), *tensors, out, lse, *keys)
        ours = torch.ops.dove.attention_backward(*saved)
        for a, b in zip(ours, attention_reference.attention_backward_op(*saved), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def _int32(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.int32)


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"q": torch.zeros(2, 8, 64)}, ValueError, r"q must be \[B, N, H, D\] without cu_seqlens"),
        ({"k": torch.zeros(2, 8, 2, 64).bfloat16()}, ValueError, "q is torch.float32 on cpu and k is torch"),
        ({"v": torch.zeros(2, 9, 2, 64)}, ValueError, "k and v must have one shape"),
        ({"q": torch.zeros(2, 8, 3, 64)}, ValueError, "agree in batch, heads and head dimension"),
        ({"prefix": -1}, ValueError, "prefix must be at least 0, or None for full attention, got -1"),
        ({"scale": 0.0}, ValueError, "scale must be above 0"),
        ({"cu_seqlens_q": _int32(0, 8)}, ValueError, "both cu_seqlens_q and cu_seqlens_k"),
        ({"kv_lens": _int32(1)}, ValueError, r"kv_lens must be \[2\], got \[1\]"),
        ({"kv_lens": torch.zeros(2)}, ValueError, "kv_lens must be one-dimensional int32"),
        ({"kv_lens": _int32(1, 9)}, RuntimeError, "lengths or cu_seqlens are out of range"),
        ({"rotary": torch.zeros(7, 16)}, ValueError, "rotary needs a row for each of the 8 keys"),
        (
            {"q": torch.zeros(2, 9, 2, 64), "rotary": torch.zeros(8, 16), "prefix": None},
            ValueError,
            "8 keys and 9 queries, got 8 rows",
        ),
        (
            {"q": torch.zeros(2, 9, 2, 64), "rotary": torch.zeros(9, 16), "prefix": 7},
            ValueError,
            "must all see every key; pass prefix=None, got 9 queries, 8 keys and prefix=7",
        ),
        ({"rotary": torch.zeros(8, 15)}, ValueError, "R even and at most 64"),
        ({name: torch.zeros(2, 8, 2, 24) for name in "qkv"}, RuntimeError, "a multiple of 16 up to 256"),
        ({name: torch.zeros(2, 8, 2, 64).double() for name in "qkv"}, TypeError, "float32 or bfloat16"),
    ],
)  # fmt: skip
def test_errors_name_the_argument(change: dict[str, Any], error: type[Exception], text: str) -> None:
    inputs = {name: torch.zeros(2, 8, 2, 64) for name in "qkv"} | change
    with pytest.raises(error, match=text):
        ops.attention(**inputs)


@pytest.mark.parametrize(
    ("queries", "keys"),
    [
        ((0, 5), (0, 4)),
        ((0, 3), (0, 4)),
        ((1, 4), (0, 4)),
        ((0, 3, 2, 4), (0, 1, 2, 4)),
        ((0, 9), (0, 9)),
    ],
    ids=str,
)
def test_wrong_sequences_are_refused(queries: tuple[int, ...], keys: tuple[int, ...]) -> None:
    q = torch.zeros(4, 2, 64)
    with pytest.raises(RuntimeError, match="cu_seqlens"):
        ops.attention(q, q, q, cu_seqlens_q=_int32(*queries), cu_seqlens_k=_int32(*keys))


@pytest.mark.parametrize(("rows", "prefix"), [(5, 3), (4, None)], ids=str)
def test_packed_queries_without_a_place_in_the_table_are_refused(rows: int, prefix: int | None) -> None:
    q, k = torch.zeros(10, 2, 64), torch.zeros(9, 2, 64)
    with pytest.raises(RuntimeError, match="lengths or cu_seqlens are out of range"):
        ops.attention(
            q, k, k, prefix=prefix, rotary=torch.zeros(rows, 16),
            cu_seqlens_q=_int32(0, 5, 10), cu_seqlens_k=_int32(0, 5, 9),
        )  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_all_slots_against_packed_keys_equal_the_padded_form(dtype: torch.dtype) -> None:
    """Keys of the kept positions alone are as good as all of them behind lengths, gradients included."""
    lengths = [40, 1, 17]
    cu = _int32(0, 40, 41, 58)
    q, k, v = (x.detach().requires_grad_() for x in projection(3, 40, dtype))
    options: dict[str, Any] = {"prefix": None, "rotary": rotary_table(40, 16)}
    padded = ops.attention(q, k, v, kv_lens=_int32(*lengths), **options)
    packed = ops.attention(
        q.flatten(0, 1), *(torch.cat([x[i, :n] for i, n in enumerate(lengths)]) for x in (k, v)),
        cu_seqlens_q=_int32(0, 40, 80, 120), cu_seqlens_k=cu, **options,
    ).view_as(padded)  # fmt: skip
    assert torch.equal(packed, padded)
    grads = [torch.autograd.grad(x.float().square().sum(), (q, k, v)) for x in (packed, padded)]
    for ours, theirs in zip(*grads, strict=True):
        assert torch.equal(ours, theirs)


def test_the_sums_of_the_softmax_have_no_gradient() -> None:
    q, k, v = (torch.randn(1, 4, 1, 16).requires_grad_() for _ in range(3))
    out, lse = torch.ops.dove.attention(q, k, v, None, None, None, None, 0, 1.0)
    assert out.requires_grad and not lse.requires_grad


def test_a_small_workspace_is_refused() -> None:
    args = _C.AttentionArgs()
    args.batch, args.heads, args.head_dim, args.len_q, args.len_k = 1, 1, 64, 8, 8
    args.dtype, args.scale, args.threads = 0, 1.0, 1
    args.workspace_bytes = _C.cpu_attention_workspace(args) - 1
    with pytest.raises(RuntimeError, match="the workspace is too small"):
        _C.cpu_attention(args)
