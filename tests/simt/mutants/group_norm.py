"""Faults in GroupNorm."""

from __future__ import annotations

from functools import partial

from tests.simt.mutants.mutant import Mutant

_forward = partial(Mutant, file="group_norm.cu", dtype="fp32")
_backward = partial(Mutant, file="group_norm_backward.cu", dtype="fp32", backward=True)
# Which block does what when: seeds from 4 on let blocks run by turns.
_order = partial(
    Mutant,
    file="group_norm_layout.h",
    through="group_norm.cu",
    dtype="fp32",
    rows=("group_norm-huge_mean", "group_norm-many_chunks"),  # an image alone, and several
    seeds=(0, 4, 6, 7),
)

NOT_NEEDED = {
    "group_norm.cu": ("run<BFloat16>(a, stream)", "run<Float16>(a, stream)"),
    "group_norm_backward.cu": ("run<BFloat16>(a, stream)", "run<Float16>(a, stream)"),
}

MUTANTS = [
    _order(
        name="the second pass waits for nothing",
        old="if (threadIdx.x == 0) wait_for(w.arrived + image, static_cast<int>(w.chunks) + 1);",
        new="",
    ),
    _order(
        name="the second pass waits for the chunks but not for what is made of them",
        old="static_cast<int>(w.chunks) + 1",
        new="static_cast<int>(w.chunks)",
    ),
    _order(
        name="the second pass runs ahead of the first",
        old="lead = chunks + processors() * kResident;",
        new="lead = 1;",
    ),
    _order(
        name="the last tasks are those of the middle once more",
        old="number = behind - pairs;",
        new="number = behind / 2;",
    ),
    _order(
        name="the first block to arrive merges",
        old="return before == count - 1;",
        new="return before == 0;",
    ),
    _order(
        name="a block arrives before all its threads have written",
        old="  __syncthreads();\n  if (threadIdx.x == 0) before = arrive(counter);",
        new="  if (threadIdx.x == 0) before = arrive(counter);",
    ),
    _forward(
        name="counters keep what the last call left in them",
        old="clear(w.tickets, w.counter_bytes, stream)",
        new="clear(w.tickets, sizeof(int), stream)",
        rows=("group_norm-31_pixels",),
    ),
    _forward(
        name="a bias that is stored is added once more",
        old="a.residual != nullptr ? own_mean : own_mean + bias[i]",
        new="own_mean + bias[i]",
        rows=("group_norm-bias_residual_odd_channels",),
    ),
    _forward(
        name="a bias that is not stored moves nothing",
        old="a.x_bias != nullptr && a.residual == nullptr;",
        new="false;",
        rows=("group_norm-bias_odd_channels",),
    ),
    _forward(
        name="the sum is stored without the bias",
        old="value[i] + other[i] + bias[i]",
        new="value[i] + other[i]",
        rows=("group_norm-bias_residual_odd_channels",),
    ),
    _forward(
        name="groups are merged before all threads have their sums",
        old="  __syncthreads();\n\n  const int per_group",
        new="  const int per_group",
        rows=("group_norm-31_pixels",),
    ),
    _forward(
        name="the spread of the threads' means is left out",
        old="deviations += entry(e).squares + seen(e) * apart * apart;",
        new="deviations += entry(e).squares;",
        rows=("group_norm-31_pixels",),
    ),
    _forward(
        name="the spread of the chunks' means is left out",
        old="deviations += squares[i] + pixels_in(i) * per_group * apart * apart;",
        new="deviations += squares[i];",
        rows=("group_norm-many_chunks",),
    ),
    _forward(
        name="every thread counts as if it had seen one pixel more",
        old="(pixels - e / per_group + own.lanes - 1) / own.lanes",
        new="(pixels + own.lanes - 1) / own.lanes",
        rows=("group_norm-257_pixels",),
    ),
    _backward(
        name="sums of a chunk are read before they are there",
        old="  __syncthreads();\n  for (int kind = 0; kind < 2; ++kind) {",
        new="  for (int kind = 0; kind < 2; ++kind) {",
        rows=("group_norm-31_pixels",),
    ),
    _backward(
        name="the mean of dz stands in for that of dz z",
        old="total += sums[kind * w.row + c] *",
        new="total += sums[c] *",
        rows=("group_norm-31_pixels",),
    ),
    _backward(
        name="the bias of x is missing from z",
        old="a.mean[at] - (a.x_bias",
        new="a.mean[at] + 0 * (a.x_bias",
        rows=("group_norm-bias_odd_channels",),
    ),
    _backward(
        name="the gradient of the bias of x lacks what arrives at the sum",
        old="sum[i] += direct[i];",
        new="sum[i] += c.rstd[i] * (dz - mean[i] - z * slope[i]);",
        rows=("group_norm-bias_residual_odd_channels",),
    ),
    _backward(
        name="column sums leave out all lanes but the first",
        old="for (int lane = 0; lane < own.lanes; ++lane) total += lanes[lane * columns + c];",
        new="for (int lane = 0; lane < 1; ++lane) total += lanes[lane * columns + c];",
        rows=("group_norm-bias_many_chunks",),
    ),
    _backward(
        name="what arrives at the sum is left out",
        old="if (a.grad_summed != nullptr) load<packet>",
        new="if (a.grad_summed == nullptr) load<packet>",
        rows=("group_norm-residual_odd_channels",),
    ),
]
