// Logits of a tile of positions against tiles of vocabulary rows: the arithmetic of the EOS kernels.
//
//                         128 vocabulary rows (Y)
//                      warp 0,2,4,6 | warp 1,3,5,7        A block of 8 warps makes a 128 x 128 tile; a warp keeps
//    128          0-1  +------------+------------+        32 x 64 of it in 64 registers a thread, in the layout of
//    positions    2-3  |  32 x 64   |            |        mma.m16n8k16. Both operands arrive in slices of 64 bytes a
//    (X)          4-5  |            |            |        row, four slices under way, by cp.async.
//                 6-7  +------------+------------+
//
// The slice of row r is four units of 16 bytes; unit u lies in slot u ^ (r / 2 % 4), so that the eight rows that
// ldmatrix reads together lie in different banks. Rows beyond an edge, and columns beyond `width`, are zero.
//
// float32 runs on the same tile with multiply-adds that are fused by name: left to the compiler, one kernel might round
// a product that another does not. In both cases a logit is summed along the width in one fixed order, whatever row and
// column of whatever tile it is: equal rows give equal logits, and so ties are ties.
#pragma once

#include "launch.h"

namespace dove::cuda {

struct LogitTile {
  static constexpr int kThreads = 256;
  // Blocks on a multiprocessor: of two, one computes exponentials or waits while the other multiplies. float32 and rows
  // that are not aligned need more registers than that leaves.
  template <class T, bool aligned>
  static constexpr int kBlocks = aligned && sizeof(T) == 2 ? 2 : 1;
  static constexpr int kSide = 128;  // positions, and vocabulary rows
  static constexpr int kStages = 4;
  static constexpr int kSlice = 64;  // bytes of a row in one stage
  static constexpr int kStageBytes = 2 * kSide * kSlice;
  static constexpr int kSharedBytes = kStages * kStageBytes;
  static constexpr int kRowTiles = 2;     // of 16, in a warp
  static constexpr int kColumnTiles = 8;  // of 8, in a warp
  using Sums = float[kRowTiles][kColumnTiles][4];

  // Where this thread's values lie in the tile: Sums[i][j][r] is row(i, r / 2), column(j, r % 2).
  __device__ static int row(int i, int half) {
    return static_cast<int>(threadIdx.x) / 64 * 32 + i * 16 + half * 8 + static_cast<int>(threadIdx.x) % 32 / 4;
  }
  __device__ static int column(int j, int which) {
    return static_cast<int>(threadIdx.x) / 32 % 2 * 64 + j * 8 + static_cast<int>(threadIdx.x) % 4 * 2 + which;
  }
};

namespace logit_tile {

__device__ inline int slot(int row, int unit) { return row * LogitTile::kSlice + ((unit ^ (row / 2 % 4)) * 16); }

// One unit of a row, from global to shared memory. `aligned`: rows begin at multiples of 16 bytes and hold whole units.
template <class T, bool aligned>
__device__ inline void copy_unit(unsigned char* to, const T* row, int first, int width) {
  constexpr int kValues = 16 / static_cast<int>(sizeof(T));
  if constexpr (aligned) {
    cp_async16(to, row + (first < width ? first : 0), row != nullptr && first < width);
  } else {
    T values[kValues];
#pragma unroll
    for (int i = 0; i < kValues; ++i) {
      values[i] = row != nullptr && first + i < width ? row[first + i] : from_float<T>(0.0f);
    }
#pragma unroll
    for (int i = 0; i < kValues; ++i) reinterpret_cast<T*>(to)[i] = values[i];
  }
}

template <class T>
__device__ inline void multiply(const unsigned char* stage, LogitTile::Sums& sums) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int first_row = warp / 2 * 32, first_column = LogitTile::kSide + warp % 2 * 64;
#pragma unroll
  for (int step = 0; step < 2; ++step) {
    uint32_t a[LogitTile::kRowTiles][4];
#pragma unroll
    for (int i = 0; i < LogitTile::kRowTiles; ++i) {
      ldmatrix_x4(a[i], stage + slot(first_row + i * 16 + lane % 16, step * 2 + lane / 16));
    }
#pragma unroll
    for (int j = 0; j < LogitTile::kColumnTiles; j += 2) {
      uint32_t b[4];  // columns j: halves of the depth, then columns j + 1
      ldmatrix_x4(b, stage + slot(first_column + j * 8 + lane / 16 * 8 + lane % 8, step * 2 + lane / 8 % 2));
#pragma unroll
      for (int i = 0; i < LogitTile::kRowTiles; ++i) {
        mma_m16n8k16<T>(sums[i][j], a[i], b[0], b[1]);
        mma_m16n8k16<T>(sums[i][j + 1], a[i], b[2], b[3]);
      }
    }
  }
}

template <>
__device__ inline void multiply<float>(const unsigned char* stage, LogitTile::Sums& sums) {
#pragma unroll 1
  for (int unit = 0; unit < 4; ++unit) {
    float4 a[LogitTile::kRowTiles][2];
#pragma unroll
    for (int i = 0; i < LogitTile::kRowTiles; ++i) {
#pragma unroll
      for (int half = 0; half < 2; ++half) a[i][half] = load_as<float4>(stage + slot(LogitTile::row(i, half), unit));
    }
#pragma unroll
    for (int j = 0; j < LogitTile::kColumnTiles; ++j) {
#pragma unroll
      for (int which = 0; which < 2; ++which) {
        const float4 b = load_as<float4>(stage + slot(LogitTile::kSide + LogitTile::column(j, which), unit));
#pragma unroll
        for (int i = 0; i < LogitTile::kRowTiles; ++i) {
#pragma unroll
          for (int half = 0; half < 2; ++half) {
            float& sum = sums[i][j][half * 2 + which];
            sum = fmaf(a[i][half].x, b.x, sum);
            sum = fmaf(a[i][half].y, b.y, sum);
            sum = fmaf(a[i][half].z, b.z, sum);
            sum = fmaf(a[i][half].w, b.w, sum);
          }
        }
      }
    }
  }
}

}  // namespace logit_tile

// Runs one tile of positions against `tiles` tiles of vocabulary rows and calls done(tile, sums) after each.
// x_row(i) and y_row(tile, i) give the address of a row, or null for one that does not exist. The whole block calls
// it; `shared` has kSharedBytes.
template <class T, bool aligned, class XRow, class YRow, class Done>
__device__ inline void for_logit_tiles(unsigned char* shared, int64_t width, int tiles, XRow x_row, YRow y_row,
                                       Done done) {
  using namespace logit_tile;
  constexpr int kDepth = LogitTile::kSlice / static_cast<int>(sizeof(T));  // values of a row in a stage
  constexpr int kStages = LogitTile::kStages;
  const int depth = static_cast<int>(width), slices = depth > 0 ? (depth + kDepth - 1) / kDepth : 1;
  const int steps = tiles * slices;
  const int unit = threadIdx.x % 4, line = threadIdx.x / 4;  // this thread copies a unit of rows line and line + 64

  const T* from[4] = {x_row(line), x_row(line + 64), nullptr, nullptr};
  int next_tile = 0, next_slice = 0;
  const auto fetch = [&](int step) {
    if (step < steps) {
      if (next_slice == 0) {
        from[2] = y_row(next_tile, line);
        from[3] = y_row(next_tile, line + 64);
      }
      unsigned char* stage = shared + step % kStages * LogitTile::kStageBytes;
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        copy_unit<T, aligned>(stage + slot(line + i * 64, unit), from[i],
                              next_slice * kDepth + unit * (16 / static_cast<int>(sizeof(T))), depth);
      }
      if (++next_slice == slices) {
        next_slice = 0;
        ++next_tile;
      }
    }
    cp_async_commit();  // also without a copy: the waits below count groups
  };

  LogitTile::Sums sums = {};
#pragma unroll
  for (int step = 0; step < kStages - 1; ++step) fetch(step);
  int tile = 0, slice = 0;
  for (int step = 0; step < steps; ++step) {
    cp_async_wait<kStages - 2>();
    __syncthreads();  // the slice of this step is there, and nobody reads the one before it any more
    fetch(step + kStages - 1);
    multiply<T>(shared + step % kStages * LogitTile::kStageBytes, sums);
    if (++slice < slices) continue;
    done(tile, sums);
#pragma unroll
    for (int i = 0; i < LogitTile::kRowTiles; ++i) {
#pragma unroll
      for (int j = 0; j < LogitTile::kColumnTiles; ++j) {
#pragma unroll
        for (int r = 0; r < 4; ++r) sums[i][j][r] = 0;
      }
    }
    slice = 0;
    ++tile;
  }
  cp_async_wait<0>();
  __syncthreads();  // `shared` may be written again
}

// Whether every row begins at a multiple of 16 bytes and holds whole units of 16 bytes.
inline bool rows_aligned(const void* base, int64_t stride_a, int64_t stride_b, int64_t width, int64_t element_bytes) {
  const int64_t values = 16 / element_bytes;
  return reinterpret_cast<uintptr_t>(base) % 16 == 0 && stride_a % values == 0 && stride_b % values == 0 &&
         width % values == 0;
}

}  // namespace dove::cuda
