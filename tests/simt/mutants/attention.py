"""Faults in the attention kernels."""

from __future__ import annotations

from functools import partial

from tests.simt.mutants.mutant import Mutant

_forward = partial(Mutant, file="attention_forward.cu")
_backward = partial(Mutant, file="attention_backward.cu", backward=True)
_tiles = partial(Mutant, file="attention_tiles.h", through="attention_forward.cu")
_sequence = partial(Mutant, file="attention_sequence.h", through="attention_forward.cu")
_float = partial(Mutant, file="attention_float.cu", dtype="fp32")

_THREE_TILES = ("attention-kv_lens_full",)  # 130 keys, no rotary and so no barrier of its own
_CACHE = ("attention-cache_17_of_150",)

NOT_NEEDED = {
    "attention_forward.cu": (
        "start<Float16>(a, stream)",
        "start<T, 32>(a, stream)",
        "start<T, 128, 1>(a, stream)",
    ),
    "attention_backward.cu": (
        "start<Float16>(a, delta, stream)",
        "start<T, 32>(a, delta, stream)",
        "start<T, 128>(a, delta, stream)",
    ),
}

MUTANTS = [
    _forward(
        name="no barrier before a tile is used",
        old="    __syncthreads();  // the tile is there for all, and nobody reads the other one any more\n",
        new="",
        rows=_THREE_TILES,
    ),
    _forward(
        name="does not wait for the tile",
        old="    cp_async_wait<0>();\n    __syncthreads();  // the tile is there",
        new="    cp_async_wait<1>();\n    __syncthreads();  // the tile is there",
        rows=_THREE_TILES,
    ),
    _forward(
        name="no barrier after the keys are rotated",
        old="rotate_tile<T, D, kKeys>(k_tile, a, t * kKeys);\n      __syncthreads();",
        new="rotate_tile<T, D, kKeys>(k_tile, a, t * kKeys);",
        rows=_CACHE,
    ),
    _forward(
        name="the next tile lands in the one in use",
        old="walked.load(a, s, t + 1);\n    cp_async_commit();",
        new="walked.load(a, s, t + 2);\n    cp_async_commit();",
        rows=_THREE_TILES,
    ),
    _forward(
        name="the mask lets one key too many through",
        old="if (key >= limits[m][e / 2])",
        new="if (key > limits[m][e / 2])",
        rows=("attention-31",),
    ),
    _forward(
        name="the rows of the mask are swapped",
        old="if (key >= limits[m][e / 2])",
        new="if (key >= limits[m][1 - e / 2])",
        rows=("attention-31",),
    ),
    _forward(
        name="the mask of a whole tile is skipped",
        old="if (least < (t + 1) * kKeys)",
        new="if (least < t * kKeys)",
        rows=("attention-31",),
    ),
    _forward(
        name="the result is not rescaled to a new maximum",
        old="o[m][n][2 * r + 1] *= rescale;",
        new="",
        rows=_CACHE,
    ),
    _forward(
        name="the sum is not rescaled to a new maximum",
        old="sum[m][r] *= rescale;",
        new="",
        rows=_CACHE,
    ),
    _forward(
        name="the maximum of half a row",
        old="top = fmaxf(top, __shfl_xor_sync(~0u, top, 2));",
        new="",
        rows=("attention-large_scores_64",),
    ),
    _forward(
        name="the last, partial tile of keys is left out",
        old="const int tiles = (end + kKeys - 1) / kKeys;",
        new="const int tiles = end / kKeys;",
        rows=_CACHE,
    ),
    _tiles(
        name="queries are not rotated",
        old="rotate_tile<T, D, kRows>(tile, a, first_position);",
        new="",
        rows=("attention-31",),
    ),
    _forward(
        name="a block of queries is rotated from position zero",
        old="begin_walk<T, D, kRows>(q_tile, a, s.position(first), [&] {",
        new="begin_walk<T, D, kRows>(q_tile, a, first, [&] {",
        rows=_CACHE,
    ),
    _forward(
        name="every tile of keys is rotated from position zero",
        old="rotate_tile<T, D, kKeys>(k_tile, a, t * kKeys);",
        new="rotate_tile<T, D, kKeys>(k_tile, a, 0);",
        rows=_CACHE,
    ),
    _tiles(
        name="a right fragment's halves are swapped",
        old="mma_m16n8k16<T>(c[m][2 * n + 1], left[m][k], b[2], b[3]);",
        new="mma_m16n8k16<T>(c[m][2 * n + 1], left[m][k], b[3], b[2]);",
        rows=("attention-31",),
    ),
    _tiles(
        name="a left fragment's registers are swapped",
        old="a[1] = pack2<T>(low[2], low[3]);\n  a[2] = pack2<T>(high[0], high[1]);",
        new="a[2] = pack2<T>(low[2], low[3]);\n  a[1] = pack2<T>(high[0], high[1]);",
        rows=("attention-31",),
    ),
    _tiles(
        name="values are loaded without the transposition",
        old="ldmatrix_x4_trans(b, corner",
        new="ldmatrix_x4(b, corner",
        rows=("attention-31",),
    ),
    _tiles(
        name="one row behind the visible keys is read",
        old="const bool valid = first + row < end && d < head_dim;",
        new="const bool valid = first + row <= end && d < head_dim;",
        rows=("attention-kv_lens_poisoned",),
    ),
    _sequence(
        name="a query does not see the key at its own position",
        old="max(position(query) + 1, prefix)",
        new="max(position(query), prefix)",
        rows=("attention-31",),
    ),
    _sequence(
        name="more queries than keys start before the first position",
        old="prefix >= keys ? max(keys - queries, 0) : keys - queries",
        new="keys - queries",
        rows=("attention-packed_more_queries",),
    ),
    _sequence(
        name="queries against a longer cache start at the first position",
        old="prefix >= keys ? max(keys - queries, 0) : keys - queries",
        new="max(keys - queries, 0) * (prefix < keys)",
        rows=("attention-cache_17_of_150_full",),
    ),
    _float(
        name="dQ is rotated back from another position than Q's",
        old="a.rotary != nullptr, s.position(query),",
        new="a.rotary != nullptr, query + s.keys - s.queries,",
        rows=("attention-packed_more_queries",),
        backward=True,
    ),
    _sequence(
        name="packed sequences share their slots",
        old="cu[candidate] / rows + candidate <= slot",
        new="cu[candidate] / rows <= slot",
        rows=("attention-packed_cross",),
    ),
    _backward(
        name="dQ: the row sum of dO O is left out",
        old="p[0][n][e] = weight * (dp[n][e] - delta[e / 2]);",
        new="p[0][n][e] = weight * dp[n][e];",
        rows=("attention-31",),
    ),
    _backward(
        name="dQ: staging overwrites keys in use",
        old="__syncthreads();  // the tiles of keys become staging",
        new="",
        rows=_THREE_TILES,
    ),
    _backward(
        name="dQ: every row of dO meets the first one of the output",
        old="s.first_q, head) + (first + mine) * a.out.stride_n;",
        new="s.first_q, head) + first * a.out.stride_n;",
        rows=("attention-31",),
    ),
    _backward(
        name="dQ: the output of a row that does not exist is read",
        old="out_values[i] = mine_exists && d < head_dim",
        new="out_values[i] = d < head_dim",
        rows=("attention-31",),
    ),
    _backward(
        name="dK: the next queries' scalars land in those in use",
        old="at = t % 2 * kQueries + threadIdx.x;",
        new="at = threadIdx.x;",
        rows=("attention-257_full",),
    ),
    _backward(
        name="dK: scalars behind the last query are read",
        old="cp_async4(delta_tiles + at, delta_rows + (valid ? query : 0), valid);",
        new="cp_async4(delta_tiles + at, delta_rows + query, true);",
        rows=("attention-31",),
    ),
    _backward(
        name="dK: queries are walked from one tile too late",
        old="const int from = s.first_query_of(first) / kQueries;",
        new="const int from = s.first_query_of(first) / kQueries + 1;",
        rows=("attention-65_prefix_33",),
    ),
    _backward(
        name="dK: scale is left out",
        old="dk[0],\n                       a.scale, staging",
        new="dk[0],\n                       1.f, staging",
        rows=("attention-31",),
    ),
    _backward(
        name="dV: the weights of masked queries are kept",
        old="p[0][n][e] = seen ? fast_exp2",
        new="p[0][n][e] = true ? fast_exp2",
        rows=("attention-31",),
    ),
    _tiles(
        name="gradients are rotated onward, not back",
        old="x[j] = values[d] * r.x + values[d + half] * r.y;",
        new="x[j] = values[d] * r.x - values[d + half] * r.y;",
        rows=("attention-31",),
        backward=True,
        through="attention_backward.cu",
    ),
    _float(
        name="weights are read before the row's threads have written them",
        old="    for (int k = 0; k < D / 4; ++k) o[k] *= rescale;\n    __syncwarp();",
        new="    for (int k = 0; k < D / 4; ++k) o[k] *= rescale;",
        rows=("attention-31",),
    ),
    _float(
        name="the tile of queries is rotated after it is used",
        old="rotate_tile<D>(q_tile, a, s.position(query));\n      __syncthreads();",
        new="rotate_tile<D>(q_tile, a, s.position(query));",
        rows=("attention-65_prefix_33",),
        backward=True,
    ),
]
