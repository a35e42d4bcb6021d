"""What the case table does not say about group_norm: independence, memory, errors, compilation."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from dove_ext import ops
from dove_ext.ops import reference


def inputs(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(5, 64, 40, 40, generator=generator).contiguous(memory_format=torch.channels_last)
    return (
        x.to(dtype),
        torch.rand(64, generator=generator).to(dtype),
        torch.rand(64, generator=generator).to(dtype),
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_images_do_not_depend_on_their_batch(dtype: torch.dtype) -> None:
    x, weight, bias = inputs(dtype)
    together = ops.group_norm(x, weight, bias)
    for image in range(5):
        assert torch.equal(ops.group_norm(x[image : image + 1], weight, bias)[0], together[image])


def test_results_are_channels_last_and_the_sum_is_what_was_normalised() -> None:
    x, weight, bias = inputs(torch.bfloat16)
    normed, summed = ops.group_norm(x, weight, bias, residual=x.flip(0).contiguous())
    assert torch.equal(summed, x + x.flip(0))
    assert torch.equal(normed, ops.group_norm(summed, weight, bias))
    for out in (normed, summed):
        assert out.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("with_residual", [False, True])
def test_float16_under_autocast(with_residual: bool) -> None:
    x, weight, bias = (t.half() if t.dim() == 4 else t for t in inputs())
    residual = x.flip(0).contiguous() if with_residual else None
    with torch.autocast("cpu", torch.float16):
        out = ops.group_norm(x, weight, bias, residual=residual)
    summed = x if residual is None else x + residual
    normed = out if isinstance(out, Tensor) else out[0]
    assert normed.dtype == torch.float16 and (isinstance(out, Tensor) or torch.equal(out[1], summed))
    exact = reference.group_norm(summed.double(), weight.double(), bias.double())
    assert (normed.double() - exact).abs().max() <= 4 * 2**-11 * exact.abs().max()
    with pytest.raises(TypeError, match="the compiled kernels take float32 or bfloat16"):
        ops.group_norm(x, weight, bias)


def backward_inputs(dtype: torch.dtype) -> tuple[Any, ...]:
    """Arguments of dove::group_norm_backward up to `silu`, channels-last."""
    x, weight, bias = inputs(dtype)
    _, mean, rstd = torch.ops.dove.group_norm(x, weight, bias, None, 32, 1e-6, True)
    return x.flip(0).cos(), x.sin(), x, mean, rstd, weight, bias


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_of_an_image_do_not_depend_on_its_batch(dtype: torch.dtype) -> None:
    *images, weight, bias = backward_inputs(dtype)
    together, *_ = torch.ops.dove.group_norm_backward(*images, weight, bias, None, False, True)
    for image in range(5):
        alone = [t[image : image + 1] for t in images]
        assert torch.equal(
            torch.ops.dove.group_norm_backward(*alone, weight, bias, None, False, True)[0][0], together[image]
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", ["contiguous", "slice", "every other row", "expanded"])
def test_gradients_may_arrive_in_any_memory(layout: str, dtype: torch.dtype) -> None:
    grad, grad_summed, *rest = backward_inputs(dtype)

    def arranged(t: Tensor) -> Tensor:
        if layout == "contiguous":
            return t.contiguous()
        if layout == "slice":  # channels of a wider gradient, as behind torch.cat
            wide = t.new_full((5, 40, 40, 67), float("nan")).permute(0, 3, 1, 2)
            wide[:, 3:] = t
            return wide[:, 3:]
        if layout == "every other row":
            return t.repeat_interleave(2, 2)[:, :, ::2]
        return t[:1, :1, :1, :1].expand(t.shape)  # as behind a sum

    arrived = arranged(grad), arranged(grad_summed)
    dense = (t.contiguous(memory_format=torch.channels_last) for t in arrived)
    actual = torch.ops.dove.group_norm_backward(*arrived, *rest, None, False, True)
    expected = torch.ops.dove.group_norm_backward(*dense, *rest, None, False, True)
    for a, e in zip(actual, expected, strict=True):
        assert torch.equal(a, e)
    assert actual[0].is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("used", [0, 1])
def test_one_of_both_results_may_be_unused(used: int) -> None:
    def gradients(function: Any) -> list[Tensor | None]:
        leaves = [t.clone().double() if function is reference.group_norm else t.clone() for t in inputs()]
        leaves += [leaves[0].flip(0), leaves[1].flip(0)]
        x, weight, bias, residual, x_bias = (leaf.requires_grad_() for leaf in leaves)
        result = function(x, weight, bias, residual=residual, x_bias=x_bias)[used]
        weights = torch.linspace(-1, 1, result.numel(), dtype=result.dtype).reshape(result.shape)
        return [*torch.autograd.grad((result * weights).sum(), leaves, allow_unused=True)]

    for a, e in zip(gradients(ops.group_norm), gradients(reference.group_norm), strict=True):
        assert (a is None) == (e is None)
        if a is not None and e is not None:
            assert (a.double() - e).abs().max() <= 1e-6 * e.abs().max()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_slope_of_silu_far_from_zero(dtype: torch.dtype) -> None:
    # One channel a group of two pixels: z is -1 and 1, so that weight and bias choose y.
    y = torch.tensor([-1e4, -200.0, -89.0, -87.5, -20.0, 0.0, 20.0, 87.5, 89.0, 200.0, 1e4])
    x = torch.tensor([-1.0, 1.0]).repeat(y.numel(), 1)[None].to(dtype)
    weight, bias = torch.full_like(y, 1e-3), y
    mean, rstd = torch.zeros(1, y.numel()), torch.ones(1, y.numel())
    _, _, grad_bias, _ = torch.ops.dove.group_norm_backward(
        torch.ones_like(x), None, x, mean, rstd, weight, bias, None, False, True
    )
    slopes = [bias.double() + sign * 1e-3 for sign in (-1, 1)]
    expected = sum(torch.sigmoid(s) * (1 + s * torch.sigmoid(-s)) for s in slopes)
    torch.testing.assert_close(
        grad_bias.double(), expected, rtol=0, atol=1e-6 if dtype is torch.float32 else 1e-3
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("with_summed", [False, True])
def test_opcheck_of_the_backward(with_summed: bool, dtype: torch.dtype) -> None:
    grad, grad_summed, *rest = backward_inputs(dtype)
    x_bias = torch.ones(64) if with_summed else None
    arguments = (grad, grad_summed if with_summed else None, *rest, x_bias, with_summed, True)
    torch.library.opcheck(torch.ops.dove.group_norm_backward, arguments)


def test_a_bias_is_as_if_it_had_been_added_before() -> None:
    x, weight, bias = inputs()
    x_bias = torch.linspace(-3, 3, 64)
    added = x + x_bias[:, None, None]
    torch.testing.assert_close(
        ops.group_norm(x, weight, bias, x_bias=x_bias), ops.group_norm(added, weight, bias), rtol=0, atol=2e-6
    )
    normed, summed = ops.group_norm(x, weight, bias, residual=x.flip(0), x_bias=x_bias)
    assert torch.equal(summed, x + x.flip(0) + x_bias[:, None, None])
    assert torch.equal(normed, ops.group_norm(summed, weight, bias))


def test_compiles_without_graph_breaks() -> None:
    def run(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        normed, summed = ops.group_norm(x, weight, bias, residual=x.relu())
        return normed * summed + ops.group_norm(x, weight, bias, silu=False, groups=4)

    def gradients(function: Any) -> list[Tensor]:
        leaves = [t.clone().requires_grad_() for t in inputs()]
        return [*torch.autograd.grad(function(*leaves).square().sum(), leaves)]

    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    for actual, expected in zip(gradients(compiled), gradients(run), strict=True):
        torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"groups": 7}, ValueError, "groups must divide the 64 channels"),
        ({"x": torch.zeros(2, 64)}, ValueError, r"x must be \[B, C, H, W\]"),
        ({"weight": torch.zeros(63)}, ValueError, r"weight must be \[64\]"),
        ({"bias": torch.zeros(64, dtype=torch.float64)}, TypeError, "bias must be float32"),
        ({"x_bias": torch.zeros(1, 64)}, ValueError, r"x_bias must be \[64\]"),
        ({"x_bias": torch.zeros(64).bfloat16()}, TypeError, "x_bias must be float32"),
        ({"residual": torch.zeros(5, 64, 40, 41)}, ValueError, "residual must be"),
        ({"residual": torch.zeros(5, 64, 40, 40, dtype=torch.bfloat16)}, ValueError, "residual must be"),
    ],
)
def test_wrong_arguments(change: dict[str, Any], error: type[Exception], text: str) -> None:
    x, weight, bias = inputs()
    with pytest.raises(error, match=text):
        ops.group_norm(**{"x": x, "weight": weight, "bias": bias, **change})
