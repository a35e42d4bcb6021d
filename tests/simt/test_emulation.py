"""The emulation itself: it computes what the hardware computes, and sees what it is there to see."""

from __future__ import annotations

import ctypes
from types import ModuleType
from typing import Any

import pytest
import torch

SEEDS = (0, 1, 2, 3)


class Memory:
    """Three guarded buffers of floats: a and b with values, c with NaN."""

    def __init__(self, module: ModuleType, *, a: int = 256, b: int = 128, c: int = 256) -> None:
        self.module = module
        self.addresses = [module.simt_allocate(4 * n) for n in (a, b, c)]
        self.a, self.b, self.c = (
            torch.frombuffer((ctypes.c_uint8 * (4 * n)).from_address(p), dtype=torch.float32)
            for n, p in zip((a, b, c), self.addresses, strict=True)
        )
        generator = torch.Generator().manual_seed(1)
        self.a.copy_(torch.randn(a, generator=generator))
        self.b.copy_(torch.randn(b, generator=generator))

    def run(self, what: str) -> None:
        self.module.simt_selftest(what, *self.addresses)


@pytest.fixture(params=SEEDS)
def memory(request: pytest.FixtureRequest, simt: ModuleType) -> Any:
    simt.simt_seed(request.param)
    yield Memory(simt)
    simt.simt_release_all()
    simt.simt_seed(0)


def test_barrier(memory: Memory) -> None:
    memory.run("sum")
    torch.testing.assert_close(memory.c[:128], memory.a[:128].sum().expand(128))


def test_a_dropped_barrier_is_seen(memory: Memory) -> None:
    memory.run("sum_without_barrier")
    assert memory.c[:128].isnan().any()


def test_cp_async_delivers_at_the_wait(memory: Memory) -> None:
    memory.run("copy")
    assert torch.equal(memory.c[:124], memory.a[:124])
    assert torch.equal(memory.c[124:128], torch.zeros(4))
    memory.run("copy_without_wait")
    assert memory.c[:128].isnan().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_tensor_cores(memory: Memory, dtype: torch.dtype) -> None:
    memory.run("multiply_bf16" if dtype == torch.bfloat16 else "multiply_fp16")
    a, b = memory.a.to(dtype).double().view(16, 16), memory.b.to(dtype).double().view(16, 8)
    torch.testing.assert_close(memory.c[:128].view(16, 8), (a @ b).float())


def test_warp_functions(memory: Memory) -> None:
    memory.c.zero_()
    memory.run("warp_functions")
    counts = memory.c.view(torch.int32)
    sums = [sum(range(i + 1)) for i in range(32)]
    assert counts[:4].tolist() == [2 * sum(sums), 0xAAAAAAAA - 2**32, sums[9], 50]


def test_a_block_may_wait_for_those_that_began_before_it(simt: ModuleType) -> None:
    for seed in (0, 1, 4, 5, 6):
        simt.simt_seed(seed)
        memory = Memory(simt)
        memory.c.zero_()
        memory.run("blocks_in_turn")
        left = memory.c.view(torch.int32)
        assert left[:9].tolist() == [8] + [1] * 8 and left[32:40].tolist() == [*range(8)]
        memory.c.zero_()
        with pytest.raises(RuntimeError, match=r"waits? for (one that has not begun|others)"):
            memory.run("blocks_that_wait_for_ever")
        simt.simt_release_all()
    simt.simt_seed(0)


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("outside_behind", "access outside global buffer 0 of 1024 bytes, at byte 1[0-5]"),
        ("outside_before", "access outside global buffer"),
        ("half_a_warp", "__shfl_xor_sync"),
        ("half_a_block", "the block cannot go on"),
        ("misaligned", "load: the address is not a multiple of 16"),
    ],
)
def test_faults_have_a_name_and_a_place(memory: Memory, what: str, message: str) -> None:
    with pytest.raises(RuntimeError, match=f"simt: .*{message}"):
        memory.run(what)


def test_writes_before_a_buffer_are_seen(simt: ModuleType) -> None:
    memory = Memory(simt)
    ctypes.memset(memory.addresses[2] - 4, 0, 4)
    assert "buffer 2 was written outside its 1024 bytes" in simt.simt_release_all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sixteen_bit_conversions(simt: ModuleType, dtype: torch.dtype) -> None:
    every = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)
    finite = every[every.isfinite()]
    between = (finite.double() + finite.double().roll(1)) / 2
    others = torch.tensor([1e30, -1e30, 6e-8, 0.0])
    values = torch.cat([finite.float(), between.float(), torch.randn(20000), others])
    kind = 1 if dtype == torch.bfloat16 else 2
    out = torch.empty(values.numel(), dtype=dtype)
    simt.simt_convert(kind, values.data_ptr(), out.data_ptr(), values.numel())
    assert torch.equal(out.float(), values.to(dtype).float())
    back = torch.empty(out.numel())
    simt.simt_convert(-kind, out.data_ptr(), back.data_ptr(), out.numel())
    assert torch.equal(back, out.float())
