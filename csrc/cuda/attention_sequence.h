// Which rows a block of an attention kernel works on, and what each query sees.
//
// A query sees the first `limit` keys of its sequence: limit(i) = min(visible, max(position(i) + 1, prefix)), where
// `visible` is the sequence's kv_lens entry or all its keys. limit never falls with i, so a tile of queries needs the
// keys up to the limit of its last row, and a mask only where the limit of its first row ends inside a tile of keys.
//
// Lengths lie on the device and are not looked at before a launch, since that would wait for the device. They are
// clamped to the operands here: wrong ones give wrong results, no access outside of a buffer.
#pragma once

#include "device.h"
#include "dove/attention.h"

namespace dove::cuda {

constexpr float kLog2E = 1.4426950408889634f;
constexpr float kInfinity = __builtin_huge_valf();

struct Sequence {
  int64_t image;    // for padded strides; 0 when packed
  int64_t first_q;  // row of its first query in the operand; 0 when padded
  int64_t first_k;
  int queries;
  int keys;
  int visible;  // keys from here on are not read
  int prefix;
  int tile;    // which of its tiles this block works on
  int origin;  // position of query 0

  __device__ int position(int query) const { return origin + query; }
  __device__ int limit(int query) const { return min(visible, max(position(query) + 1, prefix)); }
  // The first query that sees key `key`, or `queries`.
  __device__ int first_query_of(int key) const {
    if (key >= visible) return queries;
    return key < prefix ? 0 : min(queries, max(0, key - origin));
  }
};

// Packed sequences get tiles without anyone knowing their lengths: those of sequence b start at slot
// cu[b] / rows + b, which leaves room for the last, partial tile of every sequence before it.
inline __device__ int sequence_of_slot(const int32_t* cu, int batch, int rows, int slot) {
  const int lane = threadIdx.x % 32;
  int low = 0, high = batch;
  while (high - low > 1) {
    const int step = (high - low + 31) / 32;
    const int candidate = low + lane * step;
    const bool starts_before = candidate < high && cu[candidate] / rows + candidate <= slot;
    const unsigned votes = __ballot_sync(~0u, starts_before) | 1u;
    low += (31 - __clz(static_cast<int>(votes))) * step;
    high = min(high, low + step);
  }
  return low;
}

// Position of query 0. Where all queries see every key, the keys are the first of the queries' positions.
inline __device__ int first_position(int queries, int keys, int prefix) {
  return prefix >= keys ? max(keys - queries, 0) : keys - queries;
}

// Fills `s` for this block; false if its slot holds no tile. kOfKeys: the tiles are those of keys, not of queries.
template <int kRows, bool kOfKeys>
__device__ bool locate(const AttentionArgs& a, Sequence* s) {
  // Last tiles first: under a causal mask they are the longest.
  const int slot = static_cast<int>(gridDim.x - 1 - blockIdx.x);
  const int prefix = static_cast<int>(min(a.prefix, int64_t{1} << 30));
  if (a.cu_seqlens_q == nullptr) {
    const int len_q = static_cast<int>(a.len_q), len_k = static_cast<int>(a.len_k);
    const int tiles = ((kOfKeys ? len_k : len_q) + kRows - 1) / kRows;
    const int image = slot / tiles;
    const int visible = a.kv_lens == nullptr ? len_k : min(max(a.kv_lens[image], 0), len_k);
    *s = {image, 0, 0, len_q, len_k, visible, prefix, slot % tiles, first_position(len_q, len_k, prefix)};
    return true;
  }
  const int32_t* cu = kOfKeys ? a.cu_seqlens_k : a.cu_seqlens_q;
  const int b = sequence_of_slot(cu, static_cast<int>(a.batch), kRows, slot);
  const int first_q = min(max(a.cu_seqlens_q[b], 0), static_cast<int>(a.len_q));
  const int first_k = min(max(a.cu_seqlens_k[b], 0), static_cast<int>(a.len_k));
  const int queries = min(max(a.cu_seqlens_q[b + 1], first_q), static_cast<int>(a.len_q)) - first_q;
  const int keys = min(max(a.cu_seqlens_k[b + 1], first_k), static_cast<int>(a.len_k)) - first_k;
  const int tile = slot - (cu[b] / kRows + b);
  *s = {0, first_q, first_k, queries, keys, keys, prefix, tile, first_position(queries, keys, prefix)};
  return tile >= 0 && tile * kRows < (kOfKeys ? keys : queries);
}

// Blocks in x for `locate`.
template <int kRows>
int64_t slots(const AttentionArgs& a, bool of_keys) {
  const int64_t length = of_keys ? a.len_k : a.len_q;
  if (a.cu_seqlens_q == nullptr) return a.batch * ((length + kRows - 1) / kRows);
  return a.batch == 0 ? 0 : length / kRows + a.batch;
}

// Row 0 of the sequence in an operand with queries or keys.
template <class T>
__device__ T* sequence_rows(const AttentionRows& rows, const Sequence& s, int64_t first, int head) {
  return static_cast<T*>(rows.data) + s.image * rows.stride_b + first * rows.stride_n + head * rows.stride_h;
}

// The sequence's part of [batch, heads, len_q] (padded) or [heads, len_q] (packed).
template <class T>
__device__ T* query_scalars(T* base, const AttentionArgs& a, const Sequence& s, int head) {
  return base + (s.image * a.heads + head) * a.len_q + s.first_q;
}

// Cosine and sine for dimension d < rotary_dim / 2 at a position.
inline __device__ float2 rotation(const AttentionArgs& a, int position, int d) {
  const int row = min(max(position, 0), static_cast<int>(a.rotary_rows) - 1);
  const float* table = a.rotary + static_cast<int64_t>(row) * a.rotary_dim;
  return {__ldg(table + d), __ldg(table + a.rotary_dim / 2 + d)};
}

}  // namespace dove::cuda
