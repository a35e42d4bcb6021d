"""Faults in the residual sum."""

from __future__ import annotations

from functools import partial

from tests.simt.mutants.mutant import Mutant

_mutant = partial(Mutant, file="residual_sum.cu", dtype="fp32")

NOT_NEEDED = {"residual_sum.cu": ("run<BFloat16>(a, stream)", "run<Float16>(a, stream)")}

MUTANTS = [
    _mutant(
        name="the last row of zeros is read from behind the image",
        old="if (i < a.height && j < a.width)",
        new="if (j < a.width)",
        rows=("residual_sum-packets",),
    ),
    _mutant(
        name="the bias of a pixel's first packet serves all of them",
        old="a.parameters == DType::kFloat32, channel + k)",
        new="a.parameters == DType::kFloat32, k)",
        rows=("residual_sum-packets",),
    ),
    _mutant(
        name="the residual is read where x lies",
        old="i * a.residual_stride_row",
        new="i * a.x_stride_row",
        rows=("residual_sum-mixed",),
    ),
]
