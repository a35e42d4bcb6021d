"""What the operator library does for every op: one device for a launch, no second derivative by mistake."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import dove_ext
from dove_ext import _C, ops
from dove_ext.ops import backend, library

WEIGHT, BIAS = torch.linspace(0.5, 1.5, 32), torch.linspace(-0.5, 0.5, 32)


def test_a_launch_takes_tensors_of_one_device() -> None:
    def ran(*_: Tensor) -> None:
        pytest.fail("a kernel got the address of another device's memory")

    launch = library._on_device("zero_tail", ran, ran)
    tokens, lengths = torch.empty(2, 3, 4, device="meta"), torch.ones(2, dtype=torch.int32)
    with pytest.raises(ValueError, match=r"zero_tail: lengths is on cpu, but tokens is on meta; move them"):
        launch(tokens, lengths)


@pytest.mark.skipif(
    not backend.HAS_CUDA_KERNELS or torch.cuda.is_available(), reason="a build with CUDA, but no GPU"
)
def test_a_launch_that_fails_says_what_cuda_says() -> None:
    tokens, lengths = torch.zeros(1, 4, 8), torch.ones(1, dtype=torch.int32)
    with pytest.raises(
        RuntimeError, match=r"^dove::zero_tail: the CUDA launch failed: .*(driver|device).*; .*`dove info`"
    ):
        library.call(
            "cuda_zero_tail", _C.ZeroTailArgs, tokens, source=tokens, target=tokens, lengths=lengths, batch=1,
            max_len=4, width=8, element_bytes=4, source_stride_b=32, source_stride_k=8,
        )  # fmt: skip


def _both(x: Tensor) -> Tensor:
    a, b = ops.pair_norm(x, WEIGHT, BIAS, BIAS, WEIGHT)
    return a * b


WITH_KERNELS_BACKWARD: dict[str, Callable[[Tensor], Tensor]] = {
    "attention": lambda x: ops.attention(*(x.unflatten(-1, (2, 16)),) * 3),
    "group_norm": lambda x: ops.group_norm(x.transpose(1, 2), WEIGHT, BIAS, groups=4),
    "pair_norm": _both,
    "bias_gelu": lambda x: ops.bias_gelu(x, BIAS),
    "eos_probability": lambda x: ops.eos_probability(x, torch.stack([WEIGHT, BIAS])),
}


def twice_differentiated(function: Callable[[Tensor], Tensor]) -> Tensor:
    x = torch.randn(1, 4, 32, generator=torch.Generator().manual_seed(1)).requires_grad_()
    (first,) = torch.autograd.grad(function(x).square().sum(), x, create_graph=True)
    first.square().sum().backward()
    assert x.grad is not None
    return x.grad


@pytest.mark.parametrize("op", WITH_KERNELS_BACKWARD)
def test_a_second_derivative_is_refused_or_right(op: str) -> None:
    function = WITH_KERNELS_BACKWARD[op]
    with pytest.raises(RuntimeError, match=rf"{op}: .* no second derivative; call dove_ext.set_backend"):
        twice_differentiated(function)
    previous = dove_ext.set_backend("torch")
    try:
        assert twice_differentiated(function).abs().max() > 0
    finally:
        dove_ext.set_backend(previous)


def test_linear_ops_keep_their_second_derivative() -> None:
    lengths = torch.tensor([3], dtype=torch.int32)
    grad = twice_differentiated(lambda x: ops.zero_tail(x, lengths))
    assert (grad[:, :3] != 0).all() and (grad[:, 3:] == 0).all()
