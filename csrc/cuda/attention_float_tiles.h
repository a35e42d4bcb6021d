// Tiles of float32 values in shared memory and what a block does with them in plain arithmetic.
//
// A block owns 32 rows and walks over tiles of 32 others; four threads share a row. Thread t has row t / 4, of the
// walked tile columns t % 4 + 4 i, and of the result dimensions t % 4 + 4 k. Weights pass through shared memory
// between the threads of a row, which are in one warp.
#pragma once

#include "attention_sequence.h"

namespace dove::cuda {

constexpr int kThreads = 128;
constexpr int kRows = 32;
constexpr int kShare = kRows / 4;  // columns of a tile that a thread computes

template <int D>
constexpr int kRowPitch = D + 1;  // rows of a tile start in different banks
constexpr int kWeightPitch = kRows + 1;

template <int D>
__device__ void load_tile(float* tile, const float* rows, int64_t stride, int first, int end, int head_dim) {
  for (int i = threadIdx.x; i < kRows * D; i += kThreads) {
    const int row = i / D, d = i % D;
    tile[row * kRowPitch<D> + d] = first + row < end && d < head_dim ? rows[(first + row) * stride + d] : 0.f;
  }
}

template <int D>
__device__ void rotate_tile(float* tile, const AttentionArgs& a, int first_position) {
  const int row = threadIdx.x / 4, half = static_cast<int>(a.rotary_dim) / 2;
  float* values = tile + row * kRowPitch<D>;
  for (int d = threadIdx.x % 4; d < half; d += 4) {
    const float x = values[d], y = values[d + half];
    const float2 r = rotation(a, first_position + row, d);
    values[d] = x * r.x - y * r.y;
    values[d + half] = y * r.x + x * r.y;
  }
}

// The next tiles of keys and values that a block of queries walks over, the keys rotated; nobody reads the old ones any
// more, and all threads see the new ones.
template <int D>
__device__ void next_keys(float* k_tile, float* v_tile, const AttentionArgs& a, const Sequence& s, int head, int key) {
  const int head_dim = static_cast<int>(a.head_dim);
  __syncthreads();
  load_tile<D>(k_tile, sequence_rows<const float>(a.k, s, s.first_k, head), a.k.stride_n, key, s.visible, head_dim);
  load_tile<D>(v_tile, sequence_rows<const float>(a.v, s, s.first_k, head), a.v.stride_n, key, s.visible, head_dim);
  __syncthreads();
  if (a.rotary != nullptr) {
    rotate_tile<D>(k_tile, a, key);
    __syncthreads();
  }
}

// s[i] = row . tile[t % 4 + 4 i]
template <int D>
__device__ void dot_products(float (&s)[kShare], const float* row, const float* tile) {
#pragma unroll
  for (int i = 0; i < kShare; ++i) s[i] = 0.f;
  for (int d = 0; d < D; ++d) {
    const float x = row[d];
#pragma unroll
    for (int i = 0; i < kShare; ++i) s[i] = fmaf(x, tile[(threadIdx.x % 4 + 4 * i) * kRowPitch<D> + d], s[i]);
  }
}

// out[k] += sum_j weights[j] tile[j][t % 4 + 4 k]
template <int D>
__device__ void weighted_sum(float (&out)[D / 4], const float* weights, const float* tile) {
  for (int j = 0; j < kRows; ++j) {
    const float w = weights[j];
#pragma unroll
    for (int k = 0; k < D / 4; ++k) out[k] = fmaf(w, tile[j * kRowPitch<D> + threadIdx.x % 4 + 4 * k], out[k]);
  }
}

// The thread's share of one row of a gradient, rotated back if `rotated`, through `staging` (a row of a tile).
template <int D>
__device__ void store_gradient(float* row, const float (&values)[D / 4], float scale, float* staging,
                               const AttentionArgs& a, bool rotated, int position, bool valid) {
  __syncwarp();
#pragma unroll
  for (int k = 0; k < D / 4; ++k) staging[threadIdx.x % 4 + 4 * k] = values[k] * scale;
  __syncwarp();
  const int half = rotated ? static_cast<int>(a.rotary_dim) / 2 : 0;
  for (int d = threadIdx.x % 4; valid && d < a.head_dim; d += 4) {
    float x = staging[d];
    if (d < half) {
      const float2 r = rotation(a, position, d);
      x = staging[d] * r.x + staging[d + half] * r.y;
    } else if (d < 2 * half) {
      const float2 r = rotation(a, position, d - half);
      x = staging[d] * r.x - staging[d - half] * r.y;
    }
    row[d] = x;
  }
}

// Sum or maximum over the four threads of a row.
inline __device__ float sum_of_four(float v) {
  v += __shfl_xor_sync(~0u, v, 1);
  return v + __shfl_xor_sync(~0u, v, 2);
}
inline __device__ float max_of_four(float v) {
  v = fmaxf(v, __shfl_xor_sync(~0u, v, 1));
  return fmaxf(v, __shfl_xor_sync(~0u, v, 2));
}

}  // namespace dove::cuda
