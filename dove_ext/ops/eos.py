"""End of sequence: where it is predicted first, and how probable it is, without a tensor of logits."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from dove_ext import _C
from dove_ext.ops import reference
from dove_ext.ops.backend import use_kernels, without_autocast
from dove_ext.ops.library import DTYPE_CODE, call, register


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


@torch.no_grad()
def eos_log_odds(hidden: Tensor, weight: Tensor, bias: Tensor | None = None, *, eos_id: int = 0) -> Tensor:
    """Log-odds of EOS at every position: log(p_eos / (1 - p_eos)), also where p_eos is 1 in float32.

    Args:
        hidden: as for `eos_probability`.
        weight: likewise, of at least two words.
        bias: likewise.
        eos_id: likewise.

    Returns:
        Tensor: float32 [B, K]. Not differentiable.

    Raises:
        ValueError: if a shape does not fit or `eos_id` is out of range.
        TypeError: if the dtypes do not fit.
    """
    _check("eos_log_odds", hidden, weight, bias, eos_id)
    if len(weight) < 2:
        raise ValueError("eos_log_odds: weight must be [V, D] with V of at least 2: EOS needs another word")

    def without_eos(rows: Tensor) -> Tensor:
        return torch.cat([rows[:eos_id], rows[eos_id + 1 :]])

    others = without_eos(weight), None if bias is None else without_eos(bias)
    eos = weight[eos_id : eos_id + 1], None if bias is None else bias[eos_id : eos_id + 1]
    if not use_kernels("eos_probability", hidden):
        ours, theirs = (reference.eos_logits(hidden, *rows).logsumexp(-1) for rows in (eos, others))
        return ours - theirs
    # The largest logit, and the sum of all relative to it; of EOS alone that is its logit, and 1.
    _, ours, _ = torch.ops.dove.eos_probability(hidden, *eos, 0)
    _, most, total = torch.ops.dove.eos_probability(hidden, *others, 0)
    odds: Tensor = ours - (most + total.log())
    return odds


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


def _head(hidden: Tensor, weight: Tensor, bias: Tensor | None, eos_id: int) -> dict[str, Any]:
    """What every struct of these ops says of the hidden states and the vocabulary."""
    hidden, weight = _dense(hidden), _dense(weight)
    return {
        "hidden": hidden,
        "weight": weight,
        "bias": None if bias is None else bias.float().contiguous(),
        "batch": hidden.shape[0],
        "positions": hidden.shape[1],
        "width": hidden.shape[2],
        "vocabulary": weight.shape[0],
        "hidden_stride_image": hidden.stride(0),
        "hidden_stride_position": hidden.stride(1),
        "weight_stride_row": weight.stride(0),
        "eos_id": eos_id,
        "dtype": hidden.dtype,
    }


def _scan(
    device: str, hidden: Tensor, weight: Tensor, bias: Tensor | None, eos_id: int, witness: Tensor | None
) -> Tensor:
    witness = None if witness is None or not witness.numel() else witness.contiguous()
    first = hidden.new_empty(hidden.shape[0], dtype=torch.int32)
    call(
        f"{device}_eos_scan", _C.EosArgs, hidden, **_head(hidden, weight, bias, eos_id), witness=witness,
        witness_count=0 if witness is None else witness.numel(), first=first,
    )  # fmt: skip
    return first


def _probability(
    device: str, hidden: Tensor, weight: Tensor, bias: Tensor | None, eos_id: int
) -> tuple[Tensor, Tensor, Tensor]:
    probability, maximum, total = _probability_fake(hidden, weight, bias, eos_id)
    call(
        f"{device}_eos_probability", _C.EosArgs, hidden, **_head(hidden, weight, bias, eos_id),
        probability=probability, maximum=maximum, sum=total,
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
    with without_autocast(grad.device.type):  # a backward pass may be asked for inside
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
    grad_hidden, grad_weight = hidden.new_empty(hidden.shape), weight.new_empty(weight.shape)
    grad_bias = weight.new_empty(weight.shape[0], dtype=torch.float32)
    call(
        "cuda_eos_probability_backward", _C.EosGradArgs, hidden, **_head(hidden, weight, bias, eos_id),
        grad=grad.float().contiguous(), probability=probability.contiguous(), maximum=maximum.contiguous(),
        sum=total.contiguous(), grad_hidden=grad_hidden, grad_weight=grad_weight, grad_bias=grad_bias,
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
    cpu=partial(_scan, "cpu"),
    cuda=partial(_scan, "cuda"),
    fake=lambda hidden, weight, bias, eos_id, witness: hidden.new_empty(hidden.shape[0], dtype=torch.int32),
    reference=_scan_plain,
)
register(
    "eos_probability(Tensor hidden, Tensor weight, Tensor? bias, int eos_id) "
    "-> (Tensor probability, Tensor maximum, Tensor sum)",
    cpu=partial(_probability, "cpu"),
    cuda=partial(_probability, "cuda"),
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
