"""The kernels of dove_ext as functions on tensors; each is also a torch operator `torch.ops.dove.*`."""

from dove_ext.ops import group_norm_backward as group_norm_backward  # registers what autograd calls
from dove_ext.ops.attention import attention
from dove_ext.ops.backend import set_backend
from dove_ext.ops.block import add_branches, bias_gelu, pair_norm
from dove_ext.ops.conv import conv3x3, pack_conv3x3
from dove_ext.ops.eos import eos_log_odds, eos_probability, eos_scan
from dove_ext.ops.group_norm import group_norm
from dove_ext.ops.pack import lengths_to_cu_seqlens, pack, unpack, zero_tail
from dove_ext.ops.residual_sum import residual_sum

__all__ = [
    "add_branches",
    "attention",
    "bias_gelu",
    "conv3x3",
    "eos_log_odds",
    "eos_probability",
    "eos_scan",
    "group_norm",
    "lengths_to_cu_seqlens",
    "pack",
    "pack_conv3x3",
    "pair_norm",
    "residual_sum",
    "set_backend",
    "unpack",
    "zero_tail",
]
