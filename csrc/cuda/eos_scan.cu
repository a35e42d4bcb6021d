// eos_scan: the first position of each image at which EOS wins the arg-max, by refutation.
//
// EOS loses a position as soon as one row beats it, so most positions are settled by few rows:
//   1. refute: all positions against the EOS row and the witness rows. A block owns 128 positions (logit_tile.h).
//   2. rounds over the survivors: gather takes the next few survivors of every image that has not ended, scan runs
//      them against the whole vocabulary. A round that follows takes four times as many. How many rounds there are
//      follows from batch and positions alone; a round finds its members in a device counter and, where there are
//      none, does nothing. So the host never waits.
//   3. settle: the first position of an image that has stood the whole vocabulary is its answer.
// A vocabulary of at most kSmallVocabulary rows is settled in step 1, as if every row were a witness.
//
//   scan, members of a round in tiles of 128:     items in this order over a fixed grid, so that neighbouring
//         tile 0   tile 1   tile 2                blocks share vocabulary rows in the L2 cache; a tile whose
//     v0 | item 0 | item 1 | item 2 |             members have all been refuted by then is skipped
//     v1 | item 3 | item 4 | ...
//
//   bytes: hidden once, and the vocabulary once a round that has members. FLOPs: 2 (1 + W) D a position, and 2 V D a
//   survivor that is scanned. The members of a round stand in no fixed order, which changes nothing: positions do
//   not meet.
#include "dove/eos.h"
#include "eos_common.h"
#include "logit_tile.h"

namespace dove::cuda {
namespace {

constexpr int64_t kSmallVocabulary = 512;
constexpr int64_t kFirstRound = 128;
constexpr int64_t kRoundGrowth = 4;
constexpr int64_t kMaxRounds = 64;
constexpr int kGatherThreads = 128;

struct Layout {
  float* eos_logit;  // [batch, positions]
  uint8_t* alive;    // [batch, positions]: nothing has refuted EOS here yet
  int32_t* member;   // [batch, positions]: the positions of a round
  int32_t* count;    // [kMaxRounds]: members of each round
  int32_t* cursor;   // [batch]: the next position to gather
  int64_t bytes;

  Layout(const EosArgs& a, void* base) {
    bytes = 0;
    const auto take = [&](int64_t count, int64_t size) {
      void* here = static_cast<char*>(base) + bytes;
      bytes += (count * size + 63) / 64 * 64;
      return here;
    };
    eos_logit = static_cast<float*>(take(a.batch * a.positions, sizeof(float)));
    alive = static_cast<uint8_t*>(take(a.batch * a.positions, 1));
    member = static_cast<int32_t*>(take(a.batch * a.positions, sizeof(int32_t)));
    count = static_cast<int32_t*>(take(kMaxRounds, sizeof(int32_t)));
    cursor = static_cast<int32_t*>(take(a.batch, sizeof(int32_t)));
  }
};

// Whether EOS stands against a row: a larger logit beats it, an equal one only with a lower index, and so does
// whatever is not a number, its own logit included.
__device__ inline bool stands(float eos_logit, float logit, int row, int eos_id) {
  return logit < eos_logit || (logit == eos_logit && row >= eos_id);
}

// Marks the positions of a tile that a tile of rows refutes. id(column) is a column's vocabulary row, -1 for none.
template <class Id, class EosLogit, class Refute>
__device__ inline void refute_tile(const EosArgs& a, const LogitTile::Sums& sums, Id id, EosLogit eos_logit,
                                   Refute refute) {
  const int eos_id = static_cast<int>(a.eos_id);
  float eos[LogitTile::kRowTiles][2];
  bool standing[LogitTile::kRowTiles][2];
#pragma unroll
  for (int i = 0; i < LogitTile::kRowTiles; ++i) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      eos[i][half] = eos_logit(LogitTile::row(i, half));
      standing[i][half] = true;
    }
  }
#pragma unroll
  for (int j = 0; j < LogitTile::kColumnTiles; ++j) {
#pragma unroll
    for (int which = 0; which < 2; ++which) {
      const int v = id(LogitTile::column(j, which));
      if (v < 0) continue;
      const float bias = a.bias != nullptr ? a.bias[v] : 0.0f;
#pragma unroll
      for (int i = 0; i < LogitTile::kRowTiles; ++i) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const float logit = sums[i][j][half * 2 + which] + bias;
          standing[i][half] = standing[i][half] && stands(eos[i][half], logit, v, eos_id);
        }
      }
    }
  }
#pragma unroll
  for (int i = 0; i < LogitTile::kRowTiles; ++i) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      if (!standing[i][half]) refute(LogitTile::row(i, half));
    }
  }
}

// Column 0 of the first tile is EOS; the witness rows, or all rows of a small vocabulary, follow.
template <class T, bool aligned>
__global__ void __launch_bounds__(LogitTile::kThreads, LogitTile::kBlocks<T, aligned>)
    refute(EosArgs a, Layout w, bool every_row) {
  DOVE_SHARED(float, eos_logit, [LogitTile::kSide]);
  DOVE_SHARED(int32_t, refuted, [LogitTile::kSide]);
  const int64_t first = int64_t{blockIdx.x} * LogitTile::kSide, all = a.batch * a.positions;
  int rows = 1 + static_cast<int>(every_row ? a.vocabulary : a.witness_count);
  if (!every_row && rows > LogitTile::kSide && rows % LogitTile::kSide == 1) --rows;  // no tile for one witness
  if (threadIdx.x < LogitTile::kSide) refuted[threadIdx.x] = 0;
  const auto id = [&](int tile, int column) -> int {
    const int at = tile * LogitTile::kSide + column - 1;
    if (at < 0) return static_cast<int>(a.eos_id);
    if (at + 1 >= rows) return -1;
    if (every_row) return at;
    const int v = a.witness[at];
    return v >= 0 && v < a.vocabulary ? v : -1;
  };
  for_logit_tiles<T, aligned>(
      dynamic_shared(), a.width, (rows + LogitTile::kSide - 1) / LogitTile::kSide,
      [&](int i) { return first + i < all ? hidden_row<T>(a, first + i) : nullptr; },
      [&](int tile, int i) {
        const int v = id(tile, i);
        return v < 0 ? nullptr : static_cast<const T*>(a.weight) + v * a.weight_stride_row;
      },
      [&](int tile, const LogitTile::Sums& sums) {
        if (tile == 0) {
          if (LogitTile::column(0, 0) == 0) {
#pragma unroll
            for (int i = 0; i < LogitTile::kRowTiles; ++i) {
#pragma unroll
              for (int half = 0; half < 2; ++half) {
                eos_logit[LogitTile::row(i, half)] =
                    sums[i][0][half * 2] + (a.bias != nullptr ? a.bias[a.eos_id] : 0.0f);
              }
            }
          }
          __syncthreads();
        }
        refute_tile(
            a, sums, [&](int column) { return id(tile, column); }, [&](int row) { return eos_logit[row]; },
            [&](int row) { refuted[row] = 1; });
      });
  // for_logit_tiles ends with a barrier
  if (threadIdx.x < LogitTile::kSide && first + threadIdx.x < all) {
    w.eos_logit[first + threadIdx.x] = eos_logit[threadIdx.x];
    w.alive[first + threadIdx.x] = refuted[threadIdx.x] == 0;
  }
}

// One warp an image. Settles what the rounds before have shown, then takes the next `share` survivors.
__global__ void __launch_bounds__(kGatherThreads) gather(EosArgs a, Layout w, int round, int64_t begin, int64_t share) {
  const int64_t b = int64_t{blockIdx.x} * (kGatherThreads / 32) + threadIdx.x / 32;
  if (b >= a.batch) return;
  const int lane = threadIdx.x % 32;
  const uint8_t* alive = w.alive + b * a.positions;
  int64_t first = round == 0 ? a.positions : a.first[b];
  int64_t cursor = round == 0 ? begin : w.cursor[b];
  if (first < a.positions) return;  // has ended
  // All survivors before the cursor have been scanned.
  for (int64_t m = 0; m < cursor; m += 32) {
    const uint32_t standing = __ballot_sync(0xffffffffu, m + lane < cursor && alive[m + lane] != 0);
    if (standing == 0) continue;
    first = m + __ffs(static_cast<int>(standing)) - 1;
    break;
  }
  if (first == a.positions) {
    int64_t taken = 0;
    while (cursor < a.positions && taken < share) {
      const bool mine = cursor + lane < a.positions && alive[cursor + lane] != 0;
      const uint32_t standing = __ballot_sync(0xffffffffu, mine);
      const int rank = __popc(standing & ((1u << lane) - 1));
      const bool take = mine && taken + rank < share;
      const uint32_t chosen = __ballot_sync(0xffffffffu, take);
      int32_t place = 0;
      if (lane == 0 && chosen != 0) place = atomicAdd(w.count + round, static_cast<int32_t>(__popc(chosen)));
      place = __shfl_sync(0xffffffffu, place, 0);
      if (take) w.member[place + rank] = static_cast<int32_t>(b * a.positions + cursor + lane);
      taken += __popc(chosen);
      cursor = chosen == standing ? cursor + 32 : cursor + 32 - __clz(static_cast<int>(chosen));
    }
  }
  if (lane == 0) {
    a.first[b] = static_cast<int32_t>(first);
    w.cursor[b] = static_cast<int32_t>(cursor < a.positions ? cursor : a.positions);
  }
}

template <class T, bool aligned>
__global__ void __launch_bounds__(LogitTile::kThreads, LogitTile::kBlocks<T, aligned>)
    scan(EosArgs a, Layout w, int round) {
  constexpr int kSide = LogitTile::kSide;
  const int count = w.count[round], vocabulary = static_cast<int>(a.vocabulary);
  const int64_t member_tiles = ceil_div(count, kSide), row_tiles = ceil_div(a.vocabulary, kSide);
  for (int64_t item = blockIdx.x; item < member_tiles * row_tiles; item += gridDim.x) {
    const int first_member = static_cast<int>(item % member_tiles) * kSide;
    const int first_row = static_cast<int>(item / member_tiles) * kSide;
    const auto member = [&](int i) { return first_member + i < count ? w.member[first_member + i] : -1; };
    // Other blocks refute meanwhile; whether that is seen already changes the time it takes, not the answer.
    const int own = threadIdx.x < kSide ? member(threadIdx.x) : -1;
    if (!__syncthreads_or(own >= 0 && *const_cast<const volatile uint8_t*>(w.alive + own) != 0)) continue;
    for_logit_tiles<T, aligned>(
        dynamic_shared(), a.width, 1, [&](int i) { return member(i) >= 0 ? hidden_row<T>(a, member(i)) : nullptr; },
        [&](int, int i) {
          return first_row + i < vocabulary ? static_cast<const T*>(a.weight) + (first_row + i) * a.weight_stride_row
                                            : nullptr;
        },
        [&](int, const LogitTile::Sums& sums) {
          refute_tile(
              a, sums, [&](int column) { return first_row + column < vocabulary ? first_row + column : -1; },
              [&](int row) { return member(row) >= 0 ? w.eos_logit[member(row)] : 0.0f; },
              [&](int row) {
                if (member(row) >= 0) w.alive[member(row)] = 0;
              });
        });
  }
}

template <class T, bool aligned>
Status run(const EosArgs& a, void* stream) {
  const Layout w(a, a.workspace);
  const int64_t all = a.batch * a.positions;
  const bool small = a.vocabulary <= kSmallVocabulary;
  Status status = clear(w.count, kMaxRounds * sizeof(int32_t), stream);
  if (status != Status::kOk) return status;
  if (all > 0) {
    status = launch(refute<T, aligned>, dim3(static_cast<unsigned>(ceil_div(all, LogitTile::kSide))),
                    LogitTile::kThreads, LogitTile::kSharedBytes, stream, a, w, small);
    if (status != Status::kOk) return status;
  }
  const dim3 images(static_cast<unsigned>(ceil_div(a.batch, kGatherThreads / 32)));
  int64_t target = a.first_round > 0 ? a.first_round : kFirstRound;
  const int at_once = small ? 0 : resident_blocks(scan<T, aligned>, LogitTile::kThreads, LogitTile::kSharedBytes);
  int round = 0;
  for (int64_t covered = small ? a.positions : 0; covered < a.positions; ++round) {
    if (target > all || round == kMaxRounds - 2) target = all;
    const int64_t share = target / a.batch > 0 ? target / a.batch : 1;
    status = launch(gather, images, kGatherThreads, 0, stream, a, w, round, int64_t{0}, share);
    if (status != Status::kOk) return status;
    status = launch(scan<T, aligned>, dim3(at_once), LogitTile::kThreads, LogitTile::kSharedBytes, stream, a, w, round);
    if (status != Status::kOk) return status;
    covered += share;
    target *= kRoundGrowth;
  }
  return launch(gather, images, kGatherThreads, 0, stream, a, w, round, small ? a.positions : int64_t{0}, int64_t{0});
}

template <class T>
Status run(const EosArgs& a, void* stream) {
  const bool aligned = rows_aligned(a.hidden, a.hidden_stride_image, a.hidden_stride_position, a.width, sizeof(T)) &&
                       rows_aligned(a.weight, a.weight_stride_row, 0, a.width, sizeof(T));
  return aligned ? run<T, true>(a, stream) : run<T, false>(a, stream);
}

}  // namespace

int64_t eos_scan_workspace(const EosArgs& a) { return Layout(a, nullptr).bytes; }

Status eos_scan(const EosArgs& a, void* stream) {
  constexpr int64_t kMost = int64_t{1} << 30;  // positions, rows and values of a row are counted in int
  if (a.batch < 0 || a.positions < 0 || a.width < 0 || a.vocabulary < 1 || a.batch * a.positions > kMost ||
      a.width > kMost || a.vocabulary > kMost || a.witness_count > kMost) {
    return Status::kUnsupportedShape;
  }
  if (a.eos_id < 0 || a.eos_id >= a.vocabulary) return Status::kBadIndex;
  if (a.workspace_bytes < eos_scan_workspace(a)) return Status::kWorkspaceTooSmall;
  if (a.batch == 0) return Status::kOk;
  if (a.dtype == DType::kFloat32) return run<float>(a, stream);
  if (a.dtype == DType::kBFloat16) return run<BFloat16>(a, stream);
  if (a.dtype == DType::kFloat16) return run<Float16>(a, stream);
  return Status::kUnsupportedDType;
}

}  // namespace dove::cuda
