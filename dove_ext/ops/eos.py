"""End of sequence: where it is predicted first, and how probable it is, without a tensor of logits."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dove_ext import _C
from dove_ext.ops import reference
from dove_ext.ops.backend import use_kernels
from dove_ext.ops.library import DTYPE_CODE, register, stream_of


def eos_scan(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    eos_id: int = 0,
    witness: Tensor | None = None,
) -> Tensor:
    """First position of each image at which EOS is the arg-max over the vocabulary (DOVE, section 2.1).

    Exact, by refutation: EOS wins a position only if no other logit beats it, so a few rows settle most
    positions, and only what they leave is compared with the whole vocabulary. Logits are compared as the
    float32 they are summed in. Of equal logits the lowest index wins, as in arg-max. A position with a NaN
    logit is never EOS. The answer depends neither on the batch, nor on `witness`, nor on the threads.

    Args:
        hidden: [B, K, D], float32 or bfloat16 (on CUDA also float16); logits are `hidden @ weight.T + bias`.
        weight: [V, D], the dtype of `hidden`.
        bias: [V], float32 or the dtype of `hidden`.
        eos_id: the vocabulary index of EOS, 0..V-1.
        witness: int32 [W], rows of the vocabulary that win often, the most frequent first; saves time.

    Returns:
        Tensor: int32 [B], 0..K; K where EOS wins nowhere. Not differentiable.

    Raises:
        ValueError: if a shape does not fit or `eos_id` is out of range.
        TypeError: if the dtypes do not fit.
        RuntimeError: if `witness` names a row outside the vocabulary (a CUDA device skips such a row).
    """
    _check("eos_scan", hidden, weight, bias, eos_id)
    if witness is not None and (witness.dtype != torch.int32 or witness.dim() != 1):
        raise TypeError(f"eos_scan: witness must be int32 [W], got {witness.dtype} {list(witness.shape)}")
    if not use_kernels("eos_scan", hidden):
        return reference.eos_scan(hidden, weight, bias, eos_id=eos_id, witness=witness)
    bias = None if bias is None else bias.detach()
    out: Tensor = torch.ops.dove.eos_scan(hidden.detach(), weight.detach(), bias, eos_id, witness)
    return out


def eos_probability(hidden: Tensor, weight: Tensor, bias: Tensor | None = None, *, eos_id: int = 0) -> Tensor:
    """Softmax probability of EOS at every position (DOVE, section 2.2), in one stream over the vocabulary.

    Args:
        hidden: [B, K, D], float32 or bfloat16 (on CUDA also float16); logits are
            `hidden @ weight.T + bias`, in float32.
        weight: [V, D], the dtype of `hidden`.
        bias: [V], float32 or the dtype of `hidden`.
        eos_id: the vocabulary index of EOS, 0..V-1.

    Returns:
        Tensor: float32 [B, K]. Differentiable in `hidden`, `weight` and `bias`; the backward pass makes the
        logits again, some rows of the vocabulary at a time.

    Raises:
        ValueError: if a shape does not fit or `eos_id` is out of range.
        TypeError: if the dtypes do not fit.
    """
    _check("eos_probability", hidden, weight, bias, eos_id)
    if not use_kernels("eos_probability", hidden):
        return reference.eos_probability(hidden, weight, bias, eos_id=eos_id)
    probability: Tensor = torch.ops.dove.eos_probability(hidden, weight, bias, eos_id)[0]
    return probability


def _check(op: str, hidden: Tensor, weight: Tensor, bias: Tensor | None, eos_id: int) -> None:
    if hidden.dim() != 3 or weight.dim() != 2 or hidden.shape[2] != weight.shape[1]:
        raise ValueError(
            f"{op}: hidden must be [B, K, D] and weight [V, D], "
            f"got {list(hidden.shape)} and {list(weight.shape)}"
        )
    if weight.dtype != hidden.dtype:
        raise TypeError(f"{op}: weight must be {hidden.dtype} like hidden, got {weight.dtype}")
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"{op}: bias must be [{weight.shape[0]}], got {list(bias.shape)}")
    if bias is not None and bias.dtype not in (torch.float32, hidden.dtype):
        raise TypeError(f"{op}: bias must be float32 or {hidden.dtype}, got {bias.dtype}")
    if not 0 <= eos_id < weight.shape[0]:
        raise ValueError(f"{op}: eos_id must be in 0..{weight.shape[0] - 1}, got {eos_id}")


def _dense(x: Tensor) -> Tensor:
    """`x` itself if its last dimension is dense, else a copy."""
    return x if x.stride(-1) == 1 or x.shape[-1] < 2 else x.contiguous()


def _workspace(hidden: Tensor, weight: Tensor, threads: int) -> Tensor:
    batch, positions, width = hidden.shape
    size = _C.cpu_eos_workspace(batch, positions, width, weight.shape[0], threads)
    return hidden.new_empty(size, dtype=torch.uint8)


def _scan_cpu(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, eos_id: int, witness: Tensor | None
) -> Tensor:
    hidden, weight = _dense(hidden), _dense(weight)
    bias = None if bias is None else bias.float().contiguous()
    witness = None if witness is None or not witness.numel() else witness.contiguous()
    threads = torch.get_num_threads()
    workspace = _workspace(hidden, weight, threads)
    batch, positions, width = hidden.shape
    first = hidden.new_empty(batch, dtype=torch.int32)
    _C.cpu_eos_scan(
        hidden.data_ptr(), weight.data_ptr(), 0 if bias is None else bias.data_ptr(),
        0 if witness is None else witness.data_ptr(), first.data_ptr(), workspace.data_ptr(),
        workspace.numel(), batch, positions, width, weight.shape[0],
        0 if witness is None else witness.numel(), hidden.stride(0), hidden.stride(1), weight.stride(0),
        eos_id, 0, DTYPE_CODE[hidden.dtype], threads,
    )  # fmt: skip
    return first


def _probability_cpu(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, eos_id: int
) -> tuple[Tensor, Tensor, Tensor]:
    hidden, weight = _dense(hidden), _dense(weight)
    bias = None if bias is None else bias.float().contiguous()
    threads = torch.get_num_threads()
    workspace = _workspace(hidden, weight, threads)
    batch, positions, width = hidden.shape
    probability = hidden.new_empty((batch, positions), dtype=torch.float32)
    maximum, total = torch.empty_like(probability), torch.empty_like(probability)
    _C.cpu_eos_probability(
        hidden.data_ptr(), weight.data_ptr(), 0 if bias is None else bias.data_ptr(), probability.data_ptr(),
        maximum.data_ptr(), total.data_ptr(), workspace.data_ptr(), workspace.numel(), batch, positions,
        width, weight.shape[0], hidden.stride(0), hidden.stride(1), weight.stride(0), eos_id,
        DTYPE_CODE[hidden.dtype], threads,
    )  # fmt: skip
    return probability, maximum, total


def _scan_cuda(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, eos_id: int, witness: Tensor | None
) -> Tensor:
    hidden, weight = _dense(hidden), _dense(weight)
    bias = None if bias is None else bias.float().contiguous()
    witness = None if witness is None or not witness.numel() else witness.contiguous()
    batch, positions, width = hidden.shape
    size = _C.cuda_eos_scan_workspace(batch, positions, width, weight.shape[0])
    workspace = hidden.new_empty(size, dtype=torch.uint8)
    first = hidden.new_empty(batch, dtype=torch.int32)
    _C.cuda_eos_scan(
        hidden.data_ptr(), weight.data_ptr(), 0 if bias is None else bias.data_ptr(),
        0 if witness is None else witness.data_ptr(), first.data_ptr(), workspace.data_ptr(), size, batch,
        positions, width, weight.shape[0], 0 if witness is None else witness.numel(), hidden.stride(0),
        hidden.stride(1), weight.stride(0), eos_id, 0, DTYPE_CODE[hidden.dtype], stream_of(hidden),
    )  # fmt: skip
    return first


def _probability_cuda(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, eos_id: int
) -> tuple[Tensor, Tensor, Tensor]:
    hidden, weight = _dense(hidden), _dense(weight)
    bias = None if bias is None else bias.float().contiguous()
    batch, positions, width = hidden.shape
    size = _C.cuda_eos_probability_workspace(batch, positions, width, weight.shape[0])
    workspace = hidden.new_empty(size, dtype=torch.uint8)
    probability = hidden.new_empty((batch, positions), dtype=torch.float32)
    maximum, total = torch.empty_like(probability), torch.empty_like(probability)
    _C.cuda_eos_probability(
        hidden.data_ptr(), weight.data_ptr(), 0 if bias is None else bias.data_ptr(), probability.data_ptr(),
        maximum.data_ptr(), total.data_ptr(), workspace.data_ptr(), size, batch, positions, width,
        weight.shape[0], hidden.stride(0), hidden.stride(1), weight.stride(0), eos_id,
        DTYPE_CODE[hidden.dtype], stream_of(hidden),
    )  # fmt: skip
    return probability, maximum, total


def _scan_plain(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, eos_id: int, witness: Tensor | None
) -> Tensor:
    return reference.eos_scan(hidden, weight, bias, eos_id=eos_id, witness=witness)


def _probability_plain(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, eos_id: int
) -> tuple[Tensor, Tensor, Tensor]:
    logits = reference.eos_logits(hidden, weight, bias)
    maximum = logits.amax(-1)
    powers = (logits - maximum[..., None]).exp()
    total = powers.sum(-1)
    return powers[..., eos_id] / total, maximum, total


def _probability_fake(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, eos_id: int
) -> tuple[Tensor, Tensor, Tensor]:
    probability = hidden.new_empty(hidden.shape[:2], dtype=torch.float32)
    return probability, torch.empty_like(probability), torch.empty_like(probability)


def _probability_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    hidden, weight, bias, ctx.eos_id = inputs
    probability, maximum, total = output
    ctx.mark_non_differentiable(maximum, total)
    ctx.save_for_backward(hidden, weight, bias, probability, maximum, total)


# Rows of the vocabulary whose logits the plain backward pass holds at a time.
_BACKWARD_ROWS = 4096
# The widest hidden state of the CUDA backward kernel (csrc/cuda/eos_backward.cu).
_WIDEST_BACKWARD = 512


def _probability_backward(ctx: Any, grad: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    grad_hidden, grad_weight, grad_bias = torch.ops.dove.eos_probability_backward(
        grad, *ctx.saved_tensors, ctx.eos_id
    )
    return grad_hidden, grad_weight, None if ctx.saved_tensors[2] is None else grad_bias, None


def _backward_plain(
    grad: Tensor, hidden: Tensor, weight: Tensor, bias: Tensor | None, probability: Tensor, maximum: Tensor,
    total: Tensor, eos_id: int,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of p_eos, with p the softmax.

    d p_eos / d logit_v is -p_eos p_v, and p_eos times the sum of all other p_v for EOS itself: written so,
    instead of p_eos (1 - p_eos), the difference of nearly equal numbers does not arise.
    """
    rows = hidden.flatten(0, 1).float()
    scale = (grad * probability / total).flatten()[:, None]
    others = torch.zeros_like(scale)
    grad_rows = torch.zeros_like(rows)
    parts_weight, parts_bias = [], []
    for begin in range(0, weight.shape[0], _BACKWARD_ROWS):
        part = weight[begin : begin + _BACKWARD_ROWS].float()
        logits = rows @ part.T
        if bias is not None:
            logits = logits + bias[begin : begin + _BACKWARD_ROWS].float()
        share = scale * (logits - maximum.flatten()[:, None]).exp()
        if begin <= eos_id < begin + _BACKWARD_ROWS:
            share[:, eos_id - begin] = 0
        others = others + share.sum(1, keepdim=True)
        grad_rows = grad_rows - share @ part
        parts_weight.append(-(share.T @ rows))
        parts_bias.append(-share.sum(0))
    grad_rows = grad_rows + others * weight[eos_id].float()
    grad_weight = torch.cat(parts_weight)
    grad_weight[eos_id] = (others * rows).sum(0)
    grad_bias = torch.cat(parts_bias)
    grad_bias[eos_id] = others.sum()
    return (
        grad_rows.view(hidden.shape).to(hidden.dtype),
        grad_weight.to(weight.dtype),
        grad_bias.to(weight.dtype if bias is None else bias.dtype),
    )


def _backward_cuda(
    grad: Tensor, hidden: Tensor, weight: Tensor, bias: Tensor | None, probability: Tensor, maximum: Tensor,
    total: Tensor, eos_id: int,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    if hidden.shape[2] > _WIDEST_BACKWARD or not _C.cuda_eos_backward_fits(DTYPE_CODE[hidden.dtype]):
        return _backward_plain(grad, hidden, weight, bias, probability, maximum, total, eos_id)
    rows, words = _dense(hidden), _dense(weight)
    floats = None if bias is None else bias.float().contiguous()
    grad, probability = grad.float().contiguous(), probability.contiguous()
    maximum, total = maximum.contiguous(), total.contiguous()
    batch, positions, width = hidden.shape
    grad_hidden, grad_weight = hidden.new_empty(hidden.shape), weight.new_empty(weight.shape)
    grad_bias = weight.new_empty(weight.shape[0], dtype=torch.float32)
    size = _C.cuda_eos_backward_workspace(batch, positions, width, weight.shape[0])
    workspace = hidden.new_empty(size, dtype=torch.uint8)
    _C.cuda_eos_probability_backward(
        rows.data_ptr(), words.data_ptr(), 0 if floats is None else floats.data_ptr(), grad.data_ptr(),
        probability.data_ptr(), maximum.data_ptr(), total.data_ptr(), grad_hidden.data_ptr(),
        grad_weight.data_ptr(), grad_bias.data_ptr(), workspace.data_ptr(), size, batch, positions, width,
        weight.shape[0], rows.stride(0), rows.stride(1), words.stride(0), eos_id, 0,
        DTYPE_CODE[hidden.dtype], stream_of(hidden),
    )  # fmt: skip
    return grad_hidden, grad_weight, grad_bias.to(weight.dtype if bias is None else bias.dtype)


def _backward_fake(
    grad: Tensor, hidden: Tensor, weight: Tensor, bias: Tensor | None, *_: Any
) -> tuple[Tensor, Tensor, Tensor]:
    dtype = weight.dtype if bias is None else bias.dtype
    return (
        hidden.new_empty(hidden.shape),
        weight.new_empty(weight.shape),
        weight.new_empty(weight.shape[0], dtype=dtype),
    )


register(
    "eos_scan(Tensor hidden, Tensor weight, Tensor? bias, int eos_id, Tensor? witness) -> Tensor",
    cpu=_scan_cpu,
    cuda=_scan_cuda,
    fake=lambda hidden, weight, bias, eos_id, witness: hidden.new_empty(hidden.shape[0], dtype=torch.int32),
    reference=_scan_plain,
)
register(
    "eos_probability(Tensor hidden, Tensor weight, Tensor? bias, int eos_id) "
    "-> (Tensor probability, Tensor maximum, Tensor sum)",
    cpu=_probability_cpu,
    cuda=_probability_cuda,
    fake=_probability_fake,
    reference=_probability_plain,
    setup_context=_probability_setup,
    backward=_probability_backward,
)
register(
    "eos_probability_backward(Tensor grad, Tensor hidden, Tensor weight, Tensor? bias, Tensor probability, "
    "Tensor maximum, Tensor sum, int eos_id) -> (Tensor, Tensor, Tensor)",
    cpu=_backward_plain,
    cuda=_backward_cuda,
    fake=_backward_fake,
    reference=_backward_plain,
)
