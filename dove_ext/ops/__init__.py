"""The kernels of dove_ext as functions on tensors; each is also a torch operator `torch.ops.dove.*`."""

from dove_ext.ops._library import set_backend
from dove_ext.ops.attention import attention
from dove_ext.ops.group_norm import group_norm
from dove_ext.ops.pack import pack, unpack

__all__ = ["attention", "group_norm", "pack", "set_backend", "unpack"]
