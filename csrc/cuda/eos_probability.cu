// eos_probability: the softmax entry of EOS by a streaming log-sum-exp over tiles of the vocabulary.
//
//   1. chunk_sums: a block owns 128 positions and a chunk of kChunkTiles x 128 vocabulary rows (logit_tile.h). Each
//      thread keeps a running maximum, and the sum of exponentials relative to it, for the four rows of the tile of
//      which it holds values; at the end the threads of a row are merged:
//
//          position r:   | lanes 4 q .. 4 q + 3 of the left warp | the same of the right warp |  ->  maximum, sum
//
//   2. merge: a thread a position merges the chunks in order. Chunks follow from the vocabulary alone, so an image's
//      result does not depend on the batch.
//
//   FLOPs: 2 V D a position and V exponentials. Bytes: hidden and weight once from memory; from the L2 cache a tile
//   of 128 x 128 x D reads 512 D bytes for 32768 D FLOPs in 16 bits.
#include "dove/eos.h"
#include "eos_common.h"
#include "logit_tile.h"

namespace dove::cuda {
namespace {

constexpr int kChunkTiles = 8;
constexpr int64_t kChunkRows = int64_t{kChunkTiles} * LogitTile::kSide;

struct Layout {
  int64_t all;       // positions of the batch
  int64_t chunks;    // of the vocabulary
  float* eos_logit;  // [all]
  float* chunk_max;  // [chunks, all]
  float* chunk_sum;  // [chunks, all]: of exp(logit - chunk_max)
  int64_t bytes;

  Layout(const EosArgs& a, void* base) : all(a.batch * a.positions), chunks(ceil_div(a.vocabulary, kChunkRows)) {
    bytes = 0;
    const auto take = [&](int64_t count) {
      void* here = static_cast<char*>(base) + bytes;
      bytes += (count * static_cast<int64_t>(sizeof(float)) + 63) / 64 * 64;
      return static_cast<float*>(here);
    };
    eos_logit = take(all);
    chunk_max = take(chunks * all);
    chunk_sum = take(chunks * all);
  }
};

// A running maximum and the sum of exponentials relative to it.
struct LogSum {
  float maximum = kLowest;
  float sum = 0;
};

template <class T>
__device__ inline LogSum merged(LogSum a, LogSum b) {
  const float maximum = fmaxf(a.maximum, b.maximum);
  return {maximum, a.sum * exponential<T>(a.maximum - maximum) + b.sum * exponential<T>(b.maximum - maximum)};
}

template <class T, bool aligned>
__global__ void __launch_bounds__(LogitTile::kThreads, LogitTile::kBlocks<T, aligned>) chunk_sums(EosArgs a, Layout w) {
  constexpr int kSide = LogitTile::kSide;
  DOVE_SHARED(LogSum, right, [LogitTile::kSide]);  // what the right warps know of a position
  const int64_t first = int64_t{blockIdx.x} * kSide, first_row = int64_t{blockIdx.y} * kChunkRows;
  const int rows = static_cast<int>(a.vocabulary - first_row < kChunkRows ? a.vocabulary - first_row : kChunkRows);
  const int64_t eos_at = a.eos_id - first_row;
  const float* const bias = a.bias != nullptr ? a.bias + first_row : nullptr;
  LogSum own[LogitTile::kRowTiles][2];
  for_logit_tiles<T, aligned>(
      dynamic_shared(), a.width, (rows + kSide - 1) / kSide,
      [&](int i) { return first + i < w.all ? hidden_row<T>(a, first + i) : nullptr; },
      [&](int tile, int i) {
        const int at = tile * kSide + i;
        return at < rows ? static_cast<const T*>(a.weight) + (first_row + at) * a.weight_stride_row : nullptr;
      },
      [&](int tile, LogitTile::Sums& sums) {
#pragma unroll
        for (int j = 0; j < LogitTile::kColumnTiles; ++j) {
#pragma unroll
          for (int which = 0; which < 2; ++which) {
            const int at = tile * kSide + LogitTile::column(j, which);
            const float shift = bias != nullptr && at < rows ? bias[at] : 0.0f;
#pragma unroll
            for (int i = 0; i < LogitTile::kRowTiles; ++i) {
#pragma unroll
              for (int half = 0; half < 2; ++half) {
                float& logit = sums[i][j][half * 2 + which];
                logit = at < rows ? logit + shift : -INFINITY;
                const int64_t position = first + LogitTile::row(i, half);
                if (at == eos_at && position < w.all) w.eos_logit[position] = logit;
              }
            }
          }
        }
#pragma unroll
        for (int i = 0; i < LogitTile::kRowTiles; ++i) {
#pragma unroll
          for (int half = 0; half < 2; ++half) {
            LogSum& mine = own[i][half];
            float above = mine.maximum;
#pragma unroll
            for (int j = 0; j < LogitTile::kColumnTiles; ++j) {
              above = fmaxf(above, fmaxf(sums[i][j][half * 2], sums[i][j][half * 2 + 1]));
            }
            mine.sum *= exponential<T>(mine.maximum - above);
#pragma unroll
            for (int j = 0; j < LogitTile::kColumnTiles; ++j) {
              mine.sum += exponential<T>(sums[i][j][half * 2] - above);
              mine.sum += exponential<T>(sums[i][j][half * 2 + 1] - above);
            }
            mine.maximum = above;
          }
        }
      });
  const bool is_right = LogitTile::column(0, 0) >= kSide / 2;
#pragma unroll
  for (int i = 0; i < LogitTile::kRowTiles; ++i) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
#pragma unroll
      for (int apart = 1; apart < 4; apart *= 2) {
        const LogSum other{__shfl_xor_sync(0xffffffffu, own[i][half].maximum, apart),
                           __shfl_xor_sync(0xffffffffu, own[i][half].sum, apart)};
        own[i][half] = merged<T>(own[i][half], other);
      }
      if (is_right && threadIdx.x % 4 == 0) right[LogitTile::row(i, half)] = own[i][half];
    }
  }
  __syncthreads();
  if (is_right || threadIdx.x % 4 != 0) return;
#pragma unroll
  for (int i = 0; i < LogitTile::kRowTiles; ++i) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = LogitTile::row(i, half);
      if (first + row >= w.all) continue;
      const LogSum both = merged<T>(own[i][half], right[row]);
      w.chunk_max[blockIdx.y * w.all + first + row] = both.maximum;
      w.chunk_sum[blockIdx.y * w.all + first + row] = both.sum;
    }
  }
}

__global__ void __launch_bounds__(128) merge(EosArgs a, Layout w) {
  const int64_t m = int64_t{blockIdx.x} * 128 + threadIdx.x;
  if (m >= w.all) return;
  float maximum = kLowest;
  for (int64_t c = 0; c < w.chunks; ++c) maximum = fmaxf(maximum, w.chunk_max[c * w.all + m]);
  float sum = 0;
  for (int64_t c = 0; c < w.chunks; ++c) sum += w.chunk_sum[c * w.all + m] * expf(w.chunk_max[c * w.all + m] - maximum);
  a.maximum[m] = maximum;
  a.sum[m] = sum;
  a.probability[m] = expf(w.eos_logit[m] - maximum) / sum;
}

template <class T>
Status run(const EosArgs& a, void* stream) {
  const Layout w(a, a.workspace);
  if (w.all == 0) return Status::kOk;
  const bool aligned = rows_aligned(a.hidden, a.hidden_stride_image, a.hidden_stride_position, a.width, sizeof(T)) &&
                       rows_aligned(a.weight, a.weight_stride_row, 0, a.width, sizeof(T));
  const dim3 grid(static_cast<unsigned>(ceil_div(w.all, LogitTile::kSide)), static_cast<unsigned>(w.chunks));
  const Status status =
      aligned ? launch(chunk_sums<T, true>, grid, LogitTile::kThreads, LogitTile::kSharedBytes, stream, a, w)
              : launch(chunk_sums<T, false>, grid, LogitTile::kThreads, LogitTile::kSharedBytes, stream, a, w);
  if (status != Status::kOk) return status;
  return launch(merge, dim3(static_cast<unsigned>(ceil_div(w.all, 128))), 128, 0, stream, a, w);
}

}  // namespace

int64_t eos_probability_workspace(const EosArgs& a) { return Layout(a, nullptr).bytes; }

Status eos_probability(const EosArgs& a, void* stream) {
  if (a.batch < 0 || a.positions < 0 || a.width < 0 || a.width > INT32_MAX / 2 || a.vocabulary < 1 ||
      ceil_div(a.vocabulary, kChunkRows) > 65535) {
    return Status::kUnsupportedShape;
  }
  if (a.eos_id < 0 || a.eos_id >= a.vocabulary) return Status::kBadIndex;
  if (a.workspace_bytes < eos_probability_workspace(a)) return Status::kWorkspaceTooSmall;
  if (a.dtype == DType::kFloat32) return run<float>(a, stream);
  if (a.dtype == DType::kBFloat16) return run<BFloat16>(a, stream);
  if (a.dtype == DType::kFloat16) return run<Float16>(a, stream);
  return Status::kUnsupportedDType;
}

}  // namespace dove::cuda
