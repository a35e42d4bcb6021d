"""What the C++ entry points refuse before they compute; tests/fuzz/kernels.cpp calls them with anything."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from dove_ext import _C, ops

HUGE = 1 << 62


def norm(**fields: Any) -> _C.GroupNormArgs:
    return _C.GroupNormArgs(**{"batch": 1, "pixels": 4, "channels": 8, "groups": 2, "threads": 1, **fields})


@pytest.mark.parametrize("fields", [
    {"channels": 0}, {"pixels": 0}, {"groups": 0}, {"groups": 3}, {"batch": -1}, {"pixels": HUGE},
    {"channels": HUGE, "groups": 1}, {"batch": 1 << 31, "pixels": 1 << 31},
], ids=str)  # fmt: skip
def test_shapes_that_group_norm_has_no_workspace_for(fields: dict[str, int]) -> None:
    with pytest.raises(RuntimeError, match="shape"):
        _C.cpu_group_norm(norm(**fields))
    assert _C.cpu_group_norm_workspace(norm(**fields)) == 0 < _C.cpu_group_norm_workspace(norm())


@pytest.mark.parametrize("op, args, fields", [
    ("pack", _C.PackArgs, {"element_bytes": 4, "width": HUGE}),
    ("zero_tail", _C.ZeroTailArgs, {"element_bytes": 4, "max_len": 1 << 40, "width": 1 << 40}),
    ("eos_probability", _C.EosArgs, {"vocabulary": 2, "batch": 1 << 40, "positions": 1 << 30, "threads": 1}),
    ("conv3x3", _C.Conv3x3Args, {"channels_in": 32, "channels_out": 32, "height": HUGE, "width": 1}),
    ("conv3x3_pack", _C.Conv3x3PackArgs, {"channels_in": 1 << 40, "channels_out": 1 << 40, "threads": 1}),
    ("attention", _C.AttentionArgs, {"head_dim": 16, "heads": HUGE, "len_q": 4, "scale": 1.0, "threads": 1}),
], ids=lambda x: x if isinstance(x, str) else "")  # fmt: skip
def test_sizes_that_no_memory_has(op: str, args: Any, fields: dict[str, Any]) -> None:
    with pytest.raises(RuntimeError, match="shape"):
        getattr(_C, f"cpu_{op}")(args(**fields))


def test_pack_takes_an_end_for_each_image() -> None:
    """Of another number the kernel would read, or write, past what is there."""
    rows = torch.randn(4, 4, 64)
    ends = torch.arange(0, 17, 4, dtype=torch.int32)
    for padded, cu_seqlens in ((rows, ends[:2]), (rows[:2], ends), (rows[None], ends[:2])):
        with pytest.raises(
            RuntimeError, match=r"pack: padded must be \[B, L, D\] with cu_seqlens \[B \+ 1\]"
        ):
            ops.pack(padded, cu_seqlens)
