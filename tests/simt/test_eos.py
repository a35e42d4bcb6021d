"""Choices of the EOS kernels that the case table does not reach, and that a result ignores its batch."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from dove_ext import ops
from dove_ext.ops import reference
from tests.cases import CASES
from tests.cases.compare import compare_backward, compare_forward
from tests.cases.eos import one_rounding
from tests.simt.emulated import emulation

pytestmark = pytest.mark.usefixtures("one_thread")

ROWS = {str(case): case for case in CASES}


class Changed:
    """The emulated module with a choice that is left to one launcher (a field that is 0) made for it."""

    def __init__(self, module: ModuleType, launcher: str, field: str, value: int) -> None:
        self.module, self.launcher, self.field, self.value = module, launcher, field, value
        self.calls = 0

    def __dir__(self) -> list[str]:
        return dir(self.module)

    def __getattr__(self, name: str) -> Any:
        function = getattr(self.module, name)
        if name != self.launcher:
            return function

        def call(args: Any, stream: int) -> None:
            self.calls += 1
            assert getattr(args, self.field) == 0
            setattr(args, self.field, self.value)
            function(args, stream)

        return call


@pytest.mark.parametrize("row", ["late_in_a_round", "31_positions", "only_last_row_refutes"])
def test_many_small_rounds(simt: ModuleType, row: str) -> None:
    changed = Changed(simt, "cuda_eos_scan", "first_round", 1)
    with emulation(changed):  # type: ignore[arg-type]
        compare_forward(ROWS[f"eos_scan-{row}"], torch.bfloat16)
    assert changed.calls == 1


@pytest.mark.parametrize("row", ["31_positions", "257_positions", "bias"])
def test_gradients_on_a_device_with_little_shared_memory(simt: ModuleType, row: str) -> None:
    changed = Changed(simt, "cuda_eos_probability_backward", "block_rows", 32)
    with emulation(changed):  # type: ignore[arg-type]
        compare_backward(ROWS[f"eos_probability-{row}"], torch.bfloat16)
    assert changed.calls == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_images_do_not_depend_on_their_batch(simt: ModuleType, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(7)
    hidden = torch.randn(4, 70, 24, generator=generator).to(dtype)
    weight = torch.randn(600, 24, generator=generator).to(dtype)
    for image in range(4):
        hidden[image, 20 * image + 5] = 4 * weight[0]

    def results(images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        leaf = images.clone().requires_grad_()
        probability = ops.eos_probability(leaf, weight)
        (grad,) = torch.autograd.grad(probability.sum(), leaf)
        return ops.eos_scan(images, weight), probability.detach(), grad

    with emulation(simt):
        first, probability, grad = results(hidden)  # blocks enough without splits
        assert first.tolist() == reference.eos_scan(hidden, weight).tolist()
        for image in (0, 3):  # a block for each split
            alone = results(hidden[image : image + 1])
            assert alone[0].tolist() == first[image : image + 1].tolist()
            assert torch.equal(alone[1][0], probability[image])
            assert torch.equal(alone[2][0], grad[image])


@pytest.mark.parametrize("vocabulary", [2, 600])  # decided by refute, and by scan
def test_products_in_float32_are_fused_with_their_sum(simt: ModuleType, vocabulary: int) -> None:
    with emulation(simt):
        assert ops.eos_scan(**one_rounding(vocabulary)).tolist() == [1]
        _, maximum, _ = torch.ops.dove.eos_probability(**one_rounding(vocabulary), bias=None, eos_id=0)
    assert maximum.tolist() == [[2**-24]]
