// Gradients of eos_probability without a tensor of logits.
//
// Both large gradients have one form: with rows X and columns Y, P = f(X Y^T) and the gradient is P Y.
//     hidden: X = positions, Y = vocabulary rows, P(m, v) = exp(logit - maximum(m)), 0 for EOS
//     weight: X = vocabulary rows, Y = positions, P(v, m) = exp(logit - maximum(m)) scale(m), -others(m) for EOS
// So one kernel, written twice by a template, makes them like an attention of one head as wide as the hidden state:
//
//                 Y: 32 columns x 512            a block keeps X (kRows x 512) in shared memory, takes Y in slices of
//                +---------------------+         32 columns, makes the logits (kRows x 32), turns them into P in shared
//     X          |                     |         memory, and adds P Y to kRows x 512 sums that live in the registers
//     kRows x 512|  P: kRows x 32      |         of 8 warps: a warp owns every eighth tile of 8 columns, for all rows.
//                +---------------------+
//
// kRows is 64 in 16 bits, where two slices of Y are under way, and 32 in float32 and where shared memory is small. The
// columns are cut into splits that follow from the vocabulary alone. With few rows each split has a block of its own,
// else a block takes the splits one after the other; both add the splits in the same order, so the gradient of an image
// does not depend on the batch.
//
// Order of the launches: scales, hidden, finish (adds the splits; makes `others`), norm, weight, finish.
// P is rounded to the dtype for the tensor cores. Its scale is chosen by `norm` so that P stays within 1, or 4096
// for EOS, and float16 neither overflows nor loses small gradients.
//
//   FLOPs: 8 M V D. Bytes: hidden and weight once, sums once, gradients once.
#include "dove/eos.h"
#include "eos_common.h"

namespace dove::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;
constexpr int kWidth = 512;   // the widest hidden state
constexpr int kColumns = 32;  // of a slice of Y
constexpr int kSplits = 4;
constexpr int64_t kFewColumns = 512;  // not worth splitting
constexpr int kWideTiles = kWidth / 8 / kWarps;

struct Layout {
  int64_t all;                      // positions
  float* scale;                     // [all]: grad probability / sum
  float* others;                    // [all]: scale times the sum of all exponentials but that of EOS
  float* norm;                      // [1]: the largest scale
  float* hidden_sums;               // [hidden_splits, all, width]: P Y
  float* hidden_rows;               // [hidden_splits, all]: row sums of P
  float* weight_sums;               // [weight_splits, vocabulary, width]
  float* weight_rows;               // [weight_splits, vocabulary]
  int hidden_splits, hidden_parts;  // splits of the columns, and how many of them are stored apart
  int weight_splits, weight_parts;
  int64_t bytes;

  Layout(const EosGradArgs& a, void* base) : all(a.batch * a.positions) {
    const auto few = [](int64_t rows) { return ceil_div(rows, 64) < processors(); };  // blocks, without splits
    hidden_splits = a.vocabulary <= kFewColumns ? 1 : kSplits;
    hidden_parts = few(all) ? hidden_splits : 1;
    weight_splits = all <= kFewColumns ? 1 : kSplits;
    weight_parts = few(a.vocabulary) ? weight_splits : 1;
    bytes = 0;
    const auto take = [&](int64_t count) {
      void* here = static_cast<char*>(base) + bytes;
      bytes += (count * static_cast<int64_t>(sizeof(float)) + 63) / 64 * 64;
      return static_cast<float*>(here);
    };
    scale = take(all);
    others = take(all);
    norm = take(1);
    hidden_sums = take(hidden_parts * all * a.width);
    hidden_rows = take(hidden_parts * all);
    weight_sums = take(weight_parts * a.vocabulary * a.width);
    weight_rows = take(weight_parts * a.vocabulary);
  }
};

// Sizes that depend on the dtype and on the rows of a block.
template <class T, int rows>
struct Shape {
  using Value = T;
  static constexpr int kRows = rows;
  static constexpr int kRowTiles = kRows / 16;
  static constexpr int kStages = sizeof(T) == 2 ? 2 : 1;
  static constexpr int kTileColumns = kColumns / (kWarps / kRowTiles);  // of the logits, for one warp: 16 or 8
  static constexpr int kValues = 16 / static_cast<int>(sizeof(T));      // of a unit of 16 bytes
  static constexpr int kSharedBytes =
      ((kRows + kStages * kColumns) * kWidth + kRows * kColumns) * static_cast<int>(sizeof(T));
};

// Rows of kWidth values in shared memory; unit u of row r lies in slot u ^ (r % 8), against bank conflicts.
template <class T>
__device__ inline T* wide(T* base, int row, int column) {
  constexpr int kValues = 16 / static_cast<int>(sizeof(T));
  return base + row * kWidth + ((column / kValues) ^ (row % 8)) * kValues + column % kValues;
}

// Rows of kColumns values of P; 64 or 128 bytes each.
template <class T>
__device__ inline T* narrow(T* base, int row, int column) {
  constexpr int kValues = 16 / static_cast<int>(sizeof(T));
  const int swizzle = sizeof(T) == 2 ? row / 2 % 4 : row % 8;
  return base + row * kColumns + ((column / kValues) ^ swizzle) * kValues + column % kValues;
}

// Brings rows into shared memory, zeros beyond the last one and beyond the width up to the next multiple of 16.
template <class T, class RowOf>
__device__ inline void fetch(T* to, int rows, int64_t width, bool aligned, RowOf row_of) {
  constexpr int kValues = 16 / static_cast<int>(sizeof(T));
  const int units = static_cast<int>((width + 15) / 16 * 16) / kValues;
  for (int row = threadIdx.x / 32; row < rows; row += kWarps) {
    const T* from = row_of(row);
#pragma unroll 1
    for (int unit = threadIdx.x % 32; unit < units; unit += 32) {
      const int column = unit * kValues;
      T* here = wide(to, row, column);
      if (aligned) {
        cp_async16(here, from + (column < width ? column : 0), from != nullptr && column < width);
      } else {
        for (int j = 0; j < kValues; ++j) {
          here[j] = from != nullptr && column + j < width ? from[column + j] : from_float<T>(0.0f);
        }
      }
    }
  }
}

// Logits of 16 rows of X from `row` on and kTileColumns of Y from `column` on, in the layout of mma.m16n8k16. Those of
// float32 are summed as logit_tile.h sums them, so that none is above the maximum of the forward pass.
template <class S, class T>
__device__ inline void logits(T* x, T* y, int row, int column, int depth, float (&sums)[2][4]) {
  const int lane = threadIdx.x % 32;
  if constexpr (sizeof(T) == 2) {
    const int own = column + lane / 16 * 8 % S::kTileColumns + lane % 8;
#pragma unroll 2
    for (int k = 0; k < depth; k += 16) {
      uint32_t a[4], b[4];
      ldmatrix_x4(a, wide(x, row + lane % 16, k + lane / 16 * 8));
      ldmatrix_x4(b, wide(y, own, k + lane / 8 % 2 * 8));
      mma_m16n8k16<T>(sums[0], a, b[0], b[1]);
      if constexpr (S::kTileColumns == 16) mma_m16n8k16<T>(sums[1], a, b[2], b[3]);
    }
  } else {
    for (int k = 0; k < depth; k += 4) {
      float4 a[2], b[2];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        a[i] = load_as<float4>(wide(x, row + i * 8 + lane / 4, k));
        b[i] = load_as<float4>(wide(y, column + lane % 4 * 2 + i, k));
      }
#pragma unroll
      for (int r = 0; r < 4; ++r) {
        sums[0][r] = fmaf(a[r / 2].x, b[r % 2].x, sums[0][r]);
        sums[0][r] = fmaf(a[r / 2].y, b[r % 2].y, sums[0][r]);
        sums[0][r] = fmaf(a[r / 2].z, b[r % 2].z, sums[0][r]);
        sums[0][r] = fmaf(a[r / 2].w, b[r % 2].w, sums[0][r]);
      }
    }
  }
}

template <class S>
using WideSums = float[S::kRowTiles][kWideTiles][4];

// sums += P Y for this warp's tiles of 8 columns: tile, tile + 8, tile + 16, ...
template <class S, class T>
__device__ inline void add_product(T* p, T* y, int width, WideSums<S>& sums) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  if constexpr (sizeof(T) == 2) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {  // of P's columns, which are rows of Y
      uint32_t a[S::kRowTiles][4];
#pragma unroll
      for (int i = 0; i < S::kRowTiles; ++i) {
        ldmatrix_x4(a[i], narrow(p, i * 16 + lane % 16, half * 16 + lane / 16 * 8));
      }
#pragma unroll
      for (int j = 0; j < kWideTiles; j += 2) {
        if ((j * kWarps + warp) * 8 >= width) continue;
        uint32_t b[4];  // 16 rows of Y, the columns of tile j and those of the next
        ldmatrix_x4_trans(b, wide(y, half * 16 + lane % 16, ((j + lane / 16) * kWarps + warp) * 8));
#pragma unroll
        for (int i = 0; i < S::kRowTiles; ++i) {
          mma_m16n8k16<T>(sums[i][j], a[i], b[0], b[1]);
          mma_m16n8k16<T>(sums[i][j + 1], a[i], b[2], b[3]);
        }
      }
    }
  } else {
#pragma unroll 1
    for (int k = 0; k < kColumns; ++k) {
      float a[S::kRowTiles][2];
#pragma unroll
      for (int i = 0; i < S::kRowTiles; ++i) {
        a[i][0] = *narrow(p, i * 16 + lane / 4, k);
        a[i][1] = *narrow(p, i * 16 + 8 + lane / 4, k);
      }
#pragma unroll
      for (int j = 0; j < kWideTiles; ++j) {
        const int tile = (j * kWarps + warp) * 8;
        if (tile >= width) continue;
        const float2 b = load_as<float2>(wide(y, k, tile + lane % 4 * 2));
#pragma unroll
        for (int i = 0; i < S::kRowTiles; ++i) {
#pragma unroll
          for (int r = 0; r < 4; ++r) sums[i][j][r] += a[i][r / 2] * (r % 2 == 0 ? b.x : b.y);
        }
      }
    }
  }
}

enum class Of { kHidden, kWeight };

template <class S, Of of>
__global__ void __launch_bounds__(kThreads) gradient(EosGradArgs a, Layout w, bool aligned) {
  using T = typename S::Value;
  DOVE_SHARED(float, row_partial, [4][S::kRows]);  // of each warp beside another
  T* x = reinterpret_cast<T*>(dynamic_shared());
  T* y = x + S::kRows * kWidth;
  T* p = y + S::kStages * kColumns * kWidth;
  constexpr bool kHidden = of == Of::kHidden;
  const int64_t rows = kHidden ? w.all : a.vocabulary, columns = kHidden ? a.vocabulary : w.all;
  const int splits = kHidden ? w.hidden_splits : w.weight_splits, parts = kHidden ? w.hidden_parts : w.weight_parts;
  float* sums_to = (kHidden ? w.hidden_sums : w.weight_sums) + blockIdx.y * rows * a.width;
  float* rows_to = (kHidden ? w.hidden_rows : w.weight_rows) + blockIdx.y * rows;
  const auto position_row = [&](int64_t m) { return m < w.all ? hidden_row<T>(a, m) : nullptr; };
  const auto vocabulary_row = [&](int64_t v) {
    return v < a.vocabulary ? static_cast<const T*>(a.weight) + v * a.weight_stride_row : nullptr;
  };
  const int64_t first_row = int64_t{blockIdx.x} * S::kRows;
  const int64_t split_columns = ceil_div(ceil_div(columns, kColumns), splits) * kColumns;
  const int width = static_cast<int>(a.width), depth = (width + 15) / 16 * 16;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int own_row = warp % S::kRowTiles * 16, own_column = warp / S::kRowTiles * S::kTileColumns;
  const float norm = kHidden ? 1.0f : 1.0f / w.norm[0];

  fetch(x, S::kRows, a.width, aligned,
        [&](int i) { return kHidden ? position_row(first_row + i) : vocabulary_row(first_row + i); });
  const int first_split = parts > 1 ? blockIdx.y : 0, last_split = parts > 1 ? first_split + 1 : splits;
  for (int split = first_split; split < last_split; ++split) {
    const int64_t begin = split * split_columns;
    const int64_t end = begin + split_columns < columns ? begin + split_columns : columns;
    const int slices = end > begin ? static_cast<int>(ceil_div(end - begin, kColumns)) : 0;
    const auto fetch_slice = [&](int slice) {
      if (slice < slices) {
        fetch(y + slice % S::kStages * kColumns * kWidth, kColumns, a.width, aligned, [&](int i) {
          const int64_t c = begin + int64_t{slice} * kColumns + i;
          return kHidden ? vocabulary_row(c) : position_row(c);
        });
      }
      cp_async_commit();
    };
    WideSums<S> sums = {};
    float row_sum[2] = {0, 0};
    fetch_slice(0);
    for (int slice = 0; slice < slices; ++slice) {
      if (S::kStages == 2) fetch_slice(slice + 1);
      cp_async_wait<S::kStages - 1>();
      __syncthreads();  // the slice is there
      T* here = y + slice % S::kStages * kColumns * kWidth;
      float tile[2][4] = {};
      logits<S>(x, here, own_row, own_column, depth, tile);
#pragma unroll
      for (int j = 0; j < S::kTileColumns / 8; ++j) {
#pragma unroll
        for (int r = 0; r < 4; ++r) {
          const int row = own_row + r / 2 * 8 + lane / 4, column = own_column + j * 8 + lane % 4 * 2 + r % 2;
          const int64_t c = begin + int64_t{slice} * kColumns + column;
          const int64_t m = kHidden ? first_row + row : c, v = kHidden ? c : first_row + row;
          float value = 0;
          if (m < w.all && v < a.vocabulary && c < end) {
            const float logit = tile[j][r] + (a.bias != nullptr ? a.bias[v] : 0.0f);
            value = exponential<T>(logit - a.maximum[m]);
            if (kHidden && v == a.eos_id) value = 0;
            if (!kHidden) value = (v == a.eos_id ? -w.others[m] : value * w.scale[m]) * norm;
          }
          row_sum[r / 2] += value;
          *narrow(p, row, column) = from_float<T>(value);
        }
      }
      __syncthreads();  // P is complete
      add_product<S>(p, here, width, sums);
      __syncthreads();  // P and this slice may be written again
      if (S::kStages == 1) fetch_slice(slice + 1);
    }
    cp_async_wait<0>();
    // Adds this split to the ones before it, or stores it for finish to add.
    const bool add = parts == 1 && split > 0;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float sum = row_sum[half];
      sum += __shfl_xor_sync(0xffffffffu, sum, 1);
      sum += __shfl_xor_sync(0xffffffffu, sum, 2);
      if (lane % 4 == 0) row_partial[warp / S::kRowTiles][own_row + half * 8 + lane / 4] = sum;
    }
    __syncthreads();
    if (threadIdx.x < S::kRows && first_row + threadIdx.x < rows) {
      float sum = 0;
      for (int i = 0; i < kWarps / S::kRowTiles; ++i) sum += row_partial[i][threadIdx.x];
      float& to = rows_to[first_row + threadIdx.x];
      to = add ? to + sum : sum;
    }
#pragma unroll
    for (int i = 0; i < S::kRowTiles; ++i) {
#pragma unroll
      for (int j = 0; j < kWideTiles; ++j) {
#pragma unroll
        for (int r = 0; r < 4; ++r) {
          const int64_t row = first_row + i * 16 + r / 2 * 8 + lane / 4;
          const int column = (j * kWarps + warp) * 8 + lane % 4 * 2 + r % 2;
          if (row >= rows || column >= width) continue;
          float& to = sums_to[row * a.width + column];
          to = add ? to + sums[i][j][r] : sums[i][j][r];
        }
      }
    }
    __syncthreads();  // row_partial may be written again
  }
}

__global__ void __launch_bounds__(kThreads) make_scales(EosGradArgs a, Layout w) {
  const int64_t m = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (m < w.all) w.scale[m] = a.grad[m] * a.probability[m] / a.sum[m];
}

__device__ inline float summed(const float* parts, int count, int64_t stride, int64_t at) {
  float sum = parts[at];
  for (int i = 1; i < count; ++i) sum += parts[i * stride + at];
  return sum;
}

// One block a position: grad_hidden = others W(EOS) - scale sum P W.
template <class T>
__global__ void __launch_bounds__(128) finish_hidden(EosGradArgs a, Layout w) {
  const int64_t m = blockIdx.x;
  const float scale = w.scale[m], others = scale * summed(w.hidden_rows, w.hidden_parts, w.all, m);
  if (threadIdx.x == 0) w.others[m] = others;
  const T* eos = static_cast<const T*>(a.weight) + a.eos_id * a.weight_stride_row;
  for (int64_t d = threadIdx.x; d < a.width; d += 128) {
    const float sum = summed(w.hidden_sums, w.hidden_parts, w.all * a.width, m * a.width + d);
    static_cast<T*>(a.grad_hidden)[m * a.width + d] = from_float<T>(others * to_float(eos[d]) - scale * sum);
  }
}

// One block: the largest scale, at least 1e-30 to divide by. A scale that is not a number shows in P itself.
__global__ void __launch_bounds__(kThreads) find_norm(Layout w) {
  DOVE_SHARED(float, largest, [kThreads]);
  float own = 0;
  for (int64_t m = threadIdx.x; m < w.all; m += kThreads) {
    own = fmaxf(own, fmaxf(fabsf(w.scale[m]), fabsf(w.others[m]) * (1.0f / 4096)));
  }
  largest[threadIdx.x] = own;
  __syncthreads();
  if (threadIdx.x != 0) return;
  for (int i = 1; i < kThreads; ++i) own = fmaxf(own, largest[i]);
  w.norm[0] = fmaxf(own, 1e-30f);
}

// One block a vocabulary row: P carries the sign and the scale of the gradient but for -norm.
template <class T>
__global__ void __launch_bounds__(128) finish_weight(EosGradArgs a, Layout w) {
  const int64_t v = blockIdx.x;
  const float norm = -w.norm[0];
  for (int64_t d = threadIdx.x; d < a.width; d += 128) {
    const float sum = summed(w.weight_sums, w.weight_parts, a.vocabulary * a.width, v * a.width + d);
    static_cast<T*>(a.grad_weight)[v * a.width + d] = from_float<T>(norm * sum);
  }
  if (threadIdx.x == 0 && a.grad_bias != nullptr) {
    a.grad_bias[v] = norm * summed(w.weight_rows, w.weight_parts, a.vocabulary, v);
  }
}

bool rows_aligned(const EosGradArgs& a, int64_t values) {
  const auto whole = [&](const void* base, int64_t stride) {
    return reinterpret_cast<uintptr_t>(base) % 16 == 0 && stride % values == 0;
  };
  return whole(a.hidden, a.hidden_stride_image) && whole(a.hidden, a.hidden_stride_position) &&
         whole(a.weight, a.weight_stride_row) && a.width % values == 0;
}

template <class S>
Status run(const EosGradArgs& a, void* stream) {
  using T = typename S::Value;
  const Layout w(a, a.workspace);
  const bool aligned = rows_aligned(a, S::kValues);
  const auto blocks = [](int64_t count, int64_t of) { return static_cast<unsigned>(ceil_div(count, of)); };
  const dim3 hidden_grid(blocks(w.all, S::kRows), static_cast<unsigned>(w.hidden_parts));
  const dim3 weight_grid(blocks(a.vocabulary, S::kRows), static_cast<unsigned>(w.weight_parts));
  Status status = launch(make_scales, dim3(blocks(w.all, kThreads)), kThreads, 0, stream, a, w);
  if (status == Status::kOk) {
    status = launch(gradient<S, Of::kHidden>, hidden_grid, kThreads, S::kSharedBytes, stream, a, w, aligned);
  }
  if (status == Status::kOk) status = launch(finish_hidden<T>, dim3(blocks(w.all, 1)), 128, 0, stream, a, w);
  if (status == Status::kOk) status = launch(find_norm, dim3(1), kThreads, 0, stream, w);
  if (status == Status::kOk) {
    status = launch(gradient<S, Of::kWeight>, weight_grid, kThreads, S::kSharedBytes, stream, a, w, aligned);
  }
  if (status == Status::kOk) status = launch(finish_weight<T>, dim3(blocks(a.vocabulary, 1)), 128, 0, stream, a, w);
  return status;
}

// A block of 64 rows needs 132 KB of shared memory, one of 32 rows 98 KB, which all devices from sm_86 on have.
template <class T>
Status run16(const EosGradArgs& a, void* stream) {
  const bool large = a.block_rows == 0 ? shared_limit() >= Shape<T, 64>::kSharedBytes + 1024 : a.block_rows == 64;
  return large ? run<Shape<T, 64>>(a, stream) : run<Shape<T, 32>>(a, stream);
}

}  // namespace

int64_t eos_backward_workspace(const EosGradArgs& a) { return Layout(a, nullptr).bytes; }

bool eos_backward_fits(DType dtype) {
  const int bytes = dtype == DType::kFloat32 ? Shape<float, 32>::kSharedBytes : Shape<BFloat16, 32>::kSharedBytes;
  return shared_limit() >= bytes + 1024;
}

Status eos_probability_backward(const EosGradArgs& a, void* stream) {
  if (a.batch < 0 || a.positions < 0 || a.width < 0 || a.width > kWidth || a.vocabulary < 1) {
    return Status::kUnsupportedShape;
  }
  if (a.eos_id < 0 || a.eos_id >= a.vocabulary) return Status::kBadIndex;
  if (a.workspace_bytes < eos_backward_workspace(a)) return Status::kWorkspaceTooSmall;
  if (a.dtype == DType::kFloat32) return run<Shape<float, 32>>(a, stream);
  if (a.dtype == DType::kBFloat16) return run16<BFloat16>(a, stream);
  if (a.dtype == DType::kFloat16) return run16<Float16>(a, stream);
  return Status::kUnsupportedDType;
}

}  // namespace dove::cuda
