"""The bindings of the CUDA launchers, which a build without CUDA lacks, against the stub."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch

import dove_ext
from dove_ext import ops
from tests.cases import CASES
from tests.cases.compare import gradients, outputs
from tests.simt.emulated import emulation


def test_stub_names_the_cuda_launchers_and_their_arguments(simt: ModuleType) -> None:
    stub = ast.parse((Path(dove_ext.__file__).parent / "_C.pyi").read_text())
    declared = {
        node.name: [a.arg for a in node.args.args]
        for node in stub.body
        if isinstance(node, ast.FunctionDef) and node.name.startswith("cuda_")
    }
    del declared["cuda_archs"], declared["cuda_why_not"]  # they describe the build, in every build
    actual = {
        name: re.findall(r"(\w+): ", (getattr(simt, name).__doc__ or "").splitlines()[0].split("->")[0])
        for name in dir(simt)
        if name.startswith("cuda_")
    }
    assert actual == declared


# Small rows, and the launchers that run in them forward and backward, each launch with something to do.
ROWS = {
    "attention-31": {"attention", "attention_backward"},
    "pack-ragged": {"pack", "unpack"},
    "unpack-ragged": {"pack", "unpack"},
    "zero_tail-ragged": {"zero_tail"},
    "lengths_to_cu_seqlens-int64": {"cu_seqlens"},
    "eos_scan-31_positions": {"eos_scan"},
    "eos_probability-31_positions": {"eos_probability", "eos_probability_backward"},
    "group_norm-odd_channels": {"group_norm", "group_norm_backward"},
    "pair_norm-31_rows": {"pair_norm", "pair_norm_backward"},
    "bias_gelu-31_rows": {"bias_gelu", "bias_gelu_backward"},
    "add_branches-31_rows": {"add_branches"},
    "residual_sum-mixed": {"residual_sum"},
}


def _refusals(simt: ModuleType, run: Callable[[], object]) -> list[str]:
    """What is said when the first, the second, ... launch of `run` is refused."""
    said: list[str] = []
    with emulation(simt):
        while True:
            simt.simt_refuse(len(said))
            try:
                run()
            except RuntimeError as error:
                said.append(str(error))
                continue
            finally:
                ahead = simt.simt_refuse(-1)
            assert ahead >= 0, f"launch {len(said)} was refused, and nobody said so"
            return said


def test_every_launcher_has_a_row(simt: ModuleType) -> None:
    launchers = {name.removeprefix("cuda_") for name in dir(simt) if name.startswith("cuda_")}
    assert set().union(*ROWS.values()) == {n for n in launchers if not n.endswith(("_workspace", "_fits"))}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("row", ROWS)
def test_a_refused_launch_is_reported_with_its_op_and_its_reason(
    row: str, dtype: torch.dtype, simt: ModuleType
) -> None:
    (case,) = (c for c in CASES if str(c) == row)
    function, inputs = getattr(ops, case.op), case.make(dtype)
    said = _refusals(
        simt, lambda: gradients(function, case, inputs) if case.grads else outputs(function(**inputs))
    )
    names = [re.match(r"dove::(\w+): the CUDA launch failed: refused by the test; ", text) for text in said]
    assert all(names), said
    assert {name[1] for name in names if name} == ROWS[row]
