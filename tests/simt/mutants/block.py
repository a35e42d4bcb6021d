"""Faults in the element-wise kernels of a block."""

from __future__ import annotations

from functools import partial

from tests.simt.mutants.mutant import Mutant

_block = partial(Mutant, file="block.cu", dtype="fp32")

NOT_NEEDED = {"block.cu": ("run(BFloat16{})", "run(Float16{})")}

MUTANTS = [
    _block(
        name="both norms take the first weight",
        old="load_parameters<T>(a.weight[n], wide, at, weight);",
        new="load_parameters<T>(a.weight[0], wide, at, weight);",
        rows=("pair_norm-31_rows",),
    ),
    _block(
        name="the mean of dz z is left out of the gradient",
        old="rstd * (dz[i] - mean_dz - z[i] * mean_product)",
        new="rstd * (dz[i] - mean_dz)",
        rows=("pair_norm-31_rows",),
        backward=True,
    ),
    _block(
        name="sums of rows are read before they are there",
        old="  __syncthreads();\n  if (row_lane < 4",
        new="  if (row_lane < 4",
        rows=("pair_norm-31_rows",),
        backward=True,
    ),
    _block(
        name="only the first share of the rows counts",
        old="for (int64_t i = 0; i < shares; ++i) sum +=",
        new="for (int64_t i = 0; i < 1; ++i) sum +=",
        rows=("pair_norm-many_rows",),
        backward=True,
    ),
    _block(
        name="the slope of GELU lacks a factor",
        old="(phi + v * 0.39894228040143268f",
        new="(phi + 0.39894228040143268f",
        rows=("bias_gelu-31_rows",),
        backward=True,
    ),
]
