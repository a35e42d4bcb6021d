"""Faults in the EOS kernels."""

from __future__ import annotations

from functools import partial

from tests.simt.mutants.mutant import Mutant

_tile = partial(Mutant, file="logit_tile.h", through="eos_scan.cu", rows=("eos_scan-31_positions",))
_scan = partial(Mutant, file="eos_scan.cu")
_probability = partial(Mutant, file="eos_probability.cu")
_backward = partial(Mutant, file="eos_backward.cu", backward=True, rows=("eos_probability-31_positions",))

_NOT_NEEDED = ("run<float>(a, stream)", "run<Float16>(a, stream)")
NOT_NEEDED = {
    "eos_scan.cu": _NOT_NEEDED,
    "eos_probability.cu": _NOT_NEEDED,
    "eos_backward.cu": (
        "run<Shape<float, 32>>(a, stream)",
        "run<Shape<T, 32>>(a, stream)",
        "run16<Float16>(a, stream)",
    ),
}

MUTANTS = [
    _tile(
        name="a slice is used before it arrives",
        old="cp_async_wait<kStages - 2>();",
        new="cp_async_wait<kStages - 1>();",
    ),
    _tile(
        name="a slice is overwritten while it is read",
        old="    __syncthreads();  // the slice of this step is there",
        new="    // the slice of this step is there",
    ),
    _tile(
        name="two fragments of the vocabulary rows change places",
        old="mma_m16n8k16<T>(sums[i][j], a[i], b[0], b[1]);",
        new="mma_m16n8k16<T>(sums[i][j], a[i], b[0], b[2]);",
    ),
    _tile(
        name="sums of one tile run on into the next",
        old="for (int r = 0; r < 4; ++r) sums[i][j][r] = 0;",
        new="for (int r = 0; r < 4; ++r) sums[i][j][r] += 0;",
        through="eos_probability.cu",
        rows=("eos_probability-31_positions",),
    ),
    _scan(
        name="an equal logit never beats EOS",
        old="(logit == eos_logit && row >= eos_id)",
        new="logit == eos_logit",
        rows=("eos_scan-equal_row_below",),
    ),
    _scan(
        name="the EOS logit is read before it is there",
        old="          __syncthreads();\n        }\n        refute_tile(",
        new="        }\n        refute_tile(",
        rows=("eos_scan-witness",),
    ),
    _scan(
        name="survivors behind the share of a round are forgotten",
        old="cursor = chosen == standing ? cursor + 32 : cursor + 32 - __clz(static_cast<int>(chosen));",
        new="cursor = cursor + 32;",
        rows=("eos_scan-late_in_a_round",),
    ),
    _scan(
        name="a survivor that was not scanned ends its image",
        old="m + lane < cursor && alive[m + lane] != 0",
        new="m + lane < a.positions && alive[m + lane] != 0",
        rows=("eos_scan-late_in_a_round",),
    ),
    _scan(
        name="the last tile of the vocabulary is left out",
        old="row_tiles = ceil_div(a.vocabulary, kSide);",
        new="row_tiles = a.vocabulary / kSide;",
        rows=("eos_scan-only_last_row_refutes",),
    ),
    _scan(
        name="a block takes one item and goes",
        old="item += gridDim.x",
        new="item += member_tiles * row_tiles",
        rows=("eos_scan-only_last_row_refutes",),
    ),
    _probability(
        name="a sum is not rescaled when the maximum grows",
        old="            mine.sum *= exponential<T>(mine.maximum - above);\n",
        new="",
        rows=("eos_probability-257_positions",),
    ),
    _probability(
        name="the left warps do not wait for the right ones",
        old="  __syncthreads();\n  if (is_right ||",
        new="  if (is_right ||",
        rows=("eos_probability-31_positions",),
    ),
    _backward(
        name="P is read before it is complete",
        old="      __syncthreads();  // P is complete\n",
        new="",
    ),
    _backward(
        name="a slice is used before it arrives",
        old="cp_async_wait<S::kStages - 1>();",
        new="cp_async_wait<S::kStages>();",
    ),
    _backward(
        name="EOS is not left out of its own sum",
        old="if (kHidden && v == a.eos_id) value = 0;",
        new="",
    ),
    _backward(
        name="splits overwrite one another",
        old="to = add ? to + sums[i][j][r] : sums[i][j][r];",
        new="to = sums[i][j][r];",
        rows=("eos_probability-257_positions",),
    ),
]
