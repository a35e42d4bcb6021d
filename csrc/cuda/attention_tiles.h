// Tiles of 16-bit values in shared memory and what four warps do with them on tensor cores.
//
// A tile has rows of D values and 8 more: 16 bytes of padding, so that the eight rows of an ldmatrix lie in
// different banks. Dimensions from head_dim on and rows that are not visible are zero. Warp w works on rows
// 16 w .. 16 w + 15 of a tile of 64; in fragments lane l holds rows l / 4 and l / 4 + 8 and columns 2 (l % 4) and the
// next of each 16 x 8 block.
#pragma once

#include "attention_sequence.h"

namespace dove::cuda {

constexpr int kThreads = 128;

template <int D>
constexpr int kPitch = D + 8;

// Asks for rows [first, first + kRows) of a sequence; those from `end` on become zero.
template <class T, int D, int kRows>
__device__ void load_tile(T* tile, const T* rows, int64_t stride, int first, int end, int head_dim) {
  constexpr int kChunks = D / 8;
#pragma unroll
  for (int i = threadIdx.x; i < kRows * kChunks; i += kThreads) {
    const int row = i / kChunks, d = i % kChunks * 8;
    const bool valid = first + row < end && d < head_dim;
    cp_async16(tile + row * kPitch<D> + d, rows + (valid ? (first + row) * stride + d : 0), valid);
  }
}

// Rotates a tile in place. The threads of a row are in the warp that owns it when a warp owns kRows / 4 rows.
template <class T, int D, int kRows>
__device__ void rotate_tile(T* tile, const AttentionArgs& a, int first_position) {
  constexpr int kPerRow = kThreads / kRows;
  const int row = threadIdx.x / kPerRow, part = threadIdx.x % kPerRow;
  const int half = static_cast<int>(a.rotary_dim) / 2, position = first_position + row;
  T* values = tile + row * kPitch<D>;
  if (half % 2 == 0) {
    for (int d = 2 * part; d < half; d += 2 * kPerRow) {
      const float2 x = unpack2<T>(load_as<uint32_t>(values + d)), y = unpack2<T>(load_as<uint32_t>(values + d + half));
      const float2 r0 = rotation(a, position, d), r1 = rotation(a, position, d + 1);
      store_as(values + d, pack2<T>(x.x * r0.x - y.x * r0.y, x.y * r1.x - y.y * r1.y));
      store_as(values + d + half, pack2<T>(y.x * r0.x + x.x * r0.y, y.y * r1.x + x.y * r1.y));
    }
  } else {
    for (int d = part; d < half; d += kPerRow) {
      const float x = to_float(values[d]), y = to_float(values[d + half]);
      const float2 r = rotation(a, position, d);
      values[d] = from_float<T>(x * r.x - y * r.y);
      values[d + half] = from_float<T>(y * r.x + x * r.y);
    }
  }
}

// The keys and values that a block of queries walks over, in shared memory: two tiles of kKeys rows of each, so that
// the next one is on its way while one is used.
template <class T, int D, int kKeys>
struct KeyTiles {
  static constexpr int kValues = kKeys * kPitch<D>;  // of a tile

  T* keys;  // [2][kKeys][kPitch<D>]
  T* values;
  const T* key_rows;
  const T* value_rows;

  __device__ KeyTiles(T* memory, const AttentionArgs& a, const Sequence& s, int head)
      : keys(memory),
        values(memory + 2 * kValues),
        key_rows(sequence_rows<const T>(a.k, s, s.first_k, head)),
        value_rows(sequence_rows<const T>(a.v, s, s.first_k, head)) {}

  __device__ T* key_tile(int t) const { return keys + t % 2 * kValues; }
  __device__ T* value_tile(int t) const { return values + t % 2 * kValues; }
  // Asks for tile `t` of both.
  __device__ void load(const AttentionArgs& a, const Sequence& s, int t) const {
    const int head_dim = static_cast<int>(a.head_dim);
    load_tile<T, D, kKeys>(key_tile(t), key_rows, a.k.stride_n, t * kKeys, s.visible, head_dim);
    load_tile<T, D, kKeys>(value_tile(t), value_rows, a.v.stride_n, t * kKeys, s.visible, head_dim);
  }
};

// How every kernel begins: the tiles that the block owns have been asked for, `load_first` asks for the first of those
// that it walks over, and the owned `tile` is rotated when it has arrived.
template <class T, int D, int kRows, class Load>
__device__ void begin_walk(T* tile, const AttentionArgs& a, int first_position, const Load& load_first) {
  cp_async_commit();
  load_first();
  cp_async_commit();
  cp_async_wait<1>();
  __syncthreads();
  if (a.rotary != nullptr) {
    rotate_tile<T, D, kRows>(tile, a, first_position);
    __syncwarp();
  }
}

// Rows 0..15 of `tile` as left operands, one for each 16 dimensions.
template <class T, int D>
__device__ void load_left(uint32_t (&a)[D / 16][4], const T* tile) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int k = 0; k < D / 16; ++k) ldmatrix_x4(a[k], tile + lane % 16 * kPitch<D> + k * 16 + lane / 16 * 8);
}

// c[m] += left[m] tile^T: scores of 16 rows against the kCols rows of `tile`, over D. Every fragment of the tile
// serves all kM left operands.
template <class T, int D, int kCols, int kM>
__device__ void multiply_transposed(float (&c)[kM][kCols / 8][4], const uint32_t (&left)[kM][D / 16][4],
                                    const T* tile) {
  const int lane = threadIdx.x % 32;
  const T* corner = tile + (lane % 8 + lane / 16 * 8) * kPitch<D> + lane / 8 % 2 * 8;
#pragma unroll
  for (int k = 0; k < D / 16; ++k) {
#pragma unroll
    for (int n = 0; n < kCols / 16; ++n) {
      uint32_t b[4];
      ldmatrix_x4(b, corner + n * 16 * kPitch<D> + k * 16);
#pragma unroll
      for (int m = 0; m < kM; ++m) {
        mma_m16n8k16<T>(c[m][2 * n], left[m][k], b[0], b[1]);
        mma_m16n8k16<T>(c[m][2 * n + 1], left[m][k], b[2], b[3]);
      }
    }
  }
}

// The same for one left operand that is read from shared memory as it is needed: fewer registers.
template <class T, int D, int kCols>
__device__ void multiply_transposed(float (&c)[kCols / 8][4], const T* left, const T* tile) {
  const int lane = threadIdx.x % 32;
  const T* corner = tile + (lane % 8 + lane / 16 * 8) * kPitch<D> + lane / 8 % 2 * 8;
#pragma unroll
  for (int k = 0; k < D / 16; ++k) {
    uint32_t a[4];
    ldmatrix_x4(a, left + lane % 16 * kPitch<D> + k * 16 + lane / 16 * 8);
#pragma unroll
    for (int n = 0; n < kCols / 16; ++n) {
      uint32_t b[4];
      ldmatrix_x4(b, corner + n * 16 * kPitch<D> + k * 16);
      mma_m16n8k16<T>(c[2 * n], a, b[0], b[1]);
      mma_m16n8k16<T>(c[2 * n + 1], a, b[2], b[3]);
    }
  }
}

// Accumulators of 16 x 16 columns n, n + 1 as a left operand of the next product.
template <class T>
__device__ void as_left(uint32_t (&a)[4], const float (&low)[4], const float (&high)[4]) {
  a[0] = pack2<T>(low[0], low[1]);
  a[1] = pack2<T>(low[2], low[3]);
  a[2] = pack2<T>(high[0], high[1]);
  a[3] = pack2<T>(high[2], high[3]);
}

// c[m] += p[m] tile: 16 rows of weights over the kCols rows of `tile`, D dimensions out.
template <class T, int D, int kCols, int kM>
__device__ void multiply(float (&c)[kM][D / 8][4], const float (&p)[kM][kCols / 8][4], const T* tile) {
  const int lane = threadIdx.x % 32;
  const T* corner = tile + lane % 16 * kPitch<D> + lane / 16 * 8;
#pragma unroll
  for (int k = 0; k < kCols / 16; ++k) {
    uint32_t a[kM][4];
#pragma unroll
    for (int m = 0; m < kM; ++m) as_left<T>(a[m], p[m][2 * k], p[m][2 * k + 1]);
#pragma unroll
    for (int n = 0; n < D / 16; ++n) {
      uint32_t b[4];
      ldmatrix_x4_trans(b, corner + k * 16 * kPitch<D> + n * 16);
#pragma unroll
      for (int m = 0; m < kM; ++m) {
        mma_m16n8k16<T>(c[m][2 * n], a[m], b[0], b[1]);
        mma_m16n8k16<T>(c[m][2 * n + 1], a[m], b[2], b[3]);
      }
    }
  }
}

// A gradient tile on its way out: 16 rows of a warp in float32, rotated back and rounded once.
template <int D>
constexpr int kFloatPitch = D + 4;

template <class T, int D>
__device__ void store_gradient(T* rows, int64_t stride, int first, int end, float (&c)[D / 8][4], float scale,
                               float* staging, const AttentionArgs& a, bool rotated, int first_position) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int n = 0; n < D / 8; ++n) {
    float* to = staging + lane / 4 * kFloatPitch<D> + n * 8 + lane % 4 * 2;
    store_as(to, make_float2(c[n][0] * scale, c[n][1] * scale));
    store_as(to + 8 * kFloatPitch<D>, make_float2(c[n][2] * scale, c[n][3] * scale));
  }
  __syncwarp();
  const int half = rotated ? static_cast<int>(a.rotary_dim) / 2 : 0;
  for (int i = lane; i < 16 * (D / 8); i += 32) {
    const int row = i / (D / 8), d0 = i % (D / 8) * 8;
    if (first + row >= end || d0 >= a.head_dim) continue;
    const float* values = staging + row * kFloatPitch<D>;
    float x[8];
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      const int d = d0 + j;
      x[j] = values[d];
      if (d < half) {
        const float2 r = rotation(a, first_position + row, d);
        x[j] = values[d] * r.x + values[d + half] * r.y;
      } else if (d < 2 * half) {
        const float2 r = rotation(a, first_position + row, d - half);
        x[j] = values[d] * r.x - values[d - half] * r.y;
      }
    }
    store_as(rows + (first + row) * stride + d0,
             make_uint4(pack2<T>(x[0], x[1]), pack2<T>(x[2], x[3]), pack2<T>(x[4], x[5]), pack2<T>(x[6], x[7])));
  }
  __syncwarp();
}

}  // namespace dove::cuda
