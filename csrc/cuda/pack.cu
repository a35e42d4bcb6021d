// pack / unpack / zero_tail move whole rows; cu_seqlens sums lengths.
//
// A row of the padded side, (b, k), belongs to kRowThreads neighbouring threads that move it in units of up to 16
// bytes; a block of kThreads moves kThreads / row_threads rows at a time. So one kernel serves every dtype and all
// three moves, which differ in where a row comes from and in what becomes of rows behind a length: pack skips them, the
// others write zeros. Nothing is read behind a length.
//
//   bytes: pack 2 T D e, unpack and zero_tail (T + B K) D e, for T kept rows of D elements of e bytes.
#include "dove/pack.h"

#include "launch.h"

namespace dove::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kMaxBlocks = 1 << 20;  // beyond it a block moves several sets of rows

struct alignas(16) Unit16 {
  uint32_t words[4];
};

struct Rows {
  const char* base;
  int64_t stride_b;  // in bytes
  int64_t stride_k;
};

struct Move {
  Rows from;
  Rows to;
  const int32_t* ends;     // cu_seqlens [batch + 1], or null
  const int32_t* lengths;  // [batch], where there are no ends
  int64_t batch;
  int64_t max_len;
  int64_t units;        // of a row
  int64_t packed_rows;  // of the packed side
  int row_threads;      // a power of two
};

enum class Kind { kPack, kUnpack, kZeroTail };

template <class Unit, Kind kind>
__global__ void __launch_bounds__(kThreads) move_rows(Move m) {
  const int64_t rows = m.batch * m.max_len;
  const int rows_per_block = kThreads / m.row_threads;
  const int lane = threadIdx.x % m.row_threads;
  for (int64_t row = int64_t{blockIdx.x} * rows_per_block + threadIdx.x / m.row_threads; row < rows;
       row += int64_t{gridDim.x} * rows_per_block) {
    const int64_t b = row / m.max_len, k = row % m.max_len;
    const int64_t begin = kind == Kind::kZeroTail ? 0 : m.ends[b];
    const int64_t length = kind == Kind::kZeroTail ? m.lengths[b] : m.ends[b + 1] - begin;
    const int64_t packed = begin + k;
    const bool kept = k < length && (kind == Kind::kZeroTail || (packed >= 0 && packed < m.packed_rows));
    if (kind == Kind::kPack && !kept) continue;
    const char* from =
        m.from.base + (kind == Kind::kUnpack ? packed * m.from.stride_k : b * m.from.stride_b + k * m.from.stride_k);
    char* to = const_cast<char*>(m.to.base) +
               (kind == Kind::kPack ? packed * m.to.stride_k : b * m.to.stride_b + k * m.to.stride_k);
    for (int64_t i = lane; i < m.units; i += m.row_threads) {
      const int64_t at = i * static_cast<int64_t>(sizeof(Unit));
      store_as<Unit>(to + at, kept ? load_as<Unit>(from + at) : Unit{});
    }
  }
}

template <class Unit, Kind kind>
Status launch_move(Move m, int64_t row_bytes, void* stream) {
  m.units = row_bytes / static_cast<int64_t>(sizeof(Unit));
  m.row_threads = 1;
  while (m.row_threads < m.units && m.row_threads < kThreads) m.row_threads *= 2;
  const int64_t rows_per_block = kThreads / m.row_threads;
  const int64_t blocks = ceil_div(m.batch * m.max_len, rows_per_block);
  return launch(move_rows<Unit, kind>, dim3(static_cast<unsigned>(blocks < kMaxBlocks ? blocks : kMaxBlocks)), kThreads,
                0, stream, m);
}

bool divides(int64_t unit, const Rows& r) {
  return reinterpret_cast<uintptr_t>(r.base) % unit == 0 && r.stride_b % unit == 0 && r.stride_k % unit == 0;
}

// Moves in the widest unit that fits rows, strides and addresses.
template <Kind kind>
Status move(const Move& m, int64_t row_bytes, void* stream) {
  if (m.batch * m.max_len * row_bytes == 0) return Status::kOk;
  const auto fits = [&](int64_t unit) { return row_bytes % unit == 0 && divides(unit, m.from) && divides(unit, m.to); };
  if (fits(16)) return launch_move<Unit16, kind>(m, row_bytes, stream);
  if (fits(4)) return launch_move<uint32_t, kind>(m, row_bytes, stream);
  return launch_move<uint16_t, kind>(m, row_bytes, stream);
}

Status check(int64_t element_bytes, int64_t batch, int64_t max_len, int64_t width) {
  if (element_bytes != 2 && element_bytes != 4) return Status::kUnsupportedDType;
  if (batch < 0 || max_len < 0 || width < 0) return Status::kUnsupportedShape;
  return Status::kOk;
}

// pack and unpack: the same two sides, of which one is read and the other written.
template <Kind kind>
Status move_packed(const PackArgs& a, void* stream) {
  if (const Status status = check(a.element_bytes, a.batch, a.max_len, a.width); status != Status::kOk) return status;
  constexpr bool packs = kind == Kind::kPack;
  const int64_t e = a.element_bytes;
  const auto* source = static_cast<const char*>(a.source);
  const auto* target = static_cast<const char*>(a.target);
  const Rows padded{packs ? source : target, a.padded_stride_b * e, a.padded_stride_k * e};
  const Rows packed{packs ? target : source, 0, a.width * e};
  Move m{};
  m.from = packs ? padded : packed;
  m.to = packs ? packed : padded;
  m.ends = a.cu_seqlens;
  m.batch = a.batch;
  m.max_len = a.max_len;
  m.packed_rows = a.packed_rows;
  return move<kind>(m, a.width * e, stream);
}

// One block: a scan of kThreads lengths at a time, the sum so far carried on.
__global__ void __launch_bounds__(kThreads) sum_lengths(CuSeqlensArgs a) {
  DOVE_SHARED(int32_t, warp_sum, [kThreads / 32]);
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  int32_t before = 0;
  if (threadIdx.x == 0) a.cu_seqlens[0] = 0;
  for (int64_t first = 0; first < a.batch; first += kThreads) {
    const int64_t b = first + threadIdx.x;
    int32_t sum = b < a.batch ? a.lengths[b] : 0;
    for (int step = 1; step < 32; step *= 2) {
      const int32_t other = __shfl_up_sync(0xffffffffu, sum, step);
      if (lane >= step) sum += other;
    }
    if (lane == 31) warp_sum[warp] = sum;
    __syncthreads();
    int32_t total = 0;
    for (int w = 0; w < kThreads / 32; ++w) {
      if (w < warp) sum += warp_sum[w];
      total += warp_sum[w];
    }
    if (b < a.batch) a.cu_seqlens[b + 1] = before + sum;
    before += total;
    __syncthreads();  // warp_sum is written again
  }
}

}  // namespace

Status pack(const PackArgs& a, void* stream) { return move_packed<Kind::kPack>(a, stream); }

Status unpack(const PackArgs& a, void* stream) { return move_packed<Kind::kUnpack>(a, stream); }

Status zero_tail(const ZeroTailArgs& a, void* stream) {
  if (const Status status = check(a.element_bytes, a.batch, a.max_len, a.width); status != Status::kOk) return status;
  const int64_t e = a.element_bytes;
  Move m{};
  m.from = {static_cast<const char*>(a.source), a.source_stride_b * e, a.source_stride_k * e};
  m.to = {static_cast<const char*>(a.target), a.max_len * a.width * e, a.width * e};
  m.lengths = a.lengths;
  m.batch = a.batch;
  m.max_len = a.max_len;
  return move<Kind::kZeroTail>(m, a.width * e, stream);
}

Status cu_seqlens(const CuSeqlensArgs& a, void* stream) {
  if (a.batch < 0) return Status::kUnsupportedShape;
  return launch(sum_lengths, dim3(1), kThreads, 0, stream, a);
}

}  // namespace dove::cuda
