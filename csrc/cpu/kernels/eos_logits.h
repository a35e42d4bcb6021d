// Logits of a tile of vocabulary rows at a panel of positions: the arithmetic that both EOS kernels share.
//
// Positions lie across the lanes of the vectors, and a weight is broadcast to all of them. So a logit is summed
// along `width` by one lane alone, in ascending order, whatever tile it is part of: the EOS logit, the witness
// rows and the full scan agree to the last bit. The weights are read as they lie in memory; only the hidden
// states are rearranged, once for many rows:
//
//   panel[step][lane]   step = one value of the hidden state; in bfloat16 a pair of neighbours
//
// A tile keeps kTileRows x kPanelVecs accumulators in registers: two loads of hidden values and one broadcast a
// row serve twice that many multiply-adds. With up to kLanes positions half a panel is computed; then the time
// goes into streaming the weights, and the loop runs at the speed of memory.
#pragma once

#include "dove/eos.h"
#include "vec.h"

namespace dove::cpu::DOVE_ISA {

constexpr int kPanelVecs = 2;
constexpr int kPanel = kPanelVecs * kLanes;
#if defined(__AVX512F__)
constexpr int kTileRows = 12;
constexpr int kSmallTileRows = 4;
#else
constexpr int kTileRows = 6;  // 12 of 16 registers
constexpr int kSmallTileRows = 2;
#endif

// --- one step of the sum ----------------------------------------------------------------------------

template <class T>
struct Dot;

template <>
struct Dot<float> {
  static constexpr int kElements = 1;    // weights a step
  static constexpr int kUnits = kPanel;  // 32-bit words of panel a step
  using Weight = Vec;
  static inline Weight weight(const float* at, bool) { return splat(*at); }
  static inline Vec add(Vec sum, Weight w, const float* panel) { return fma(w, load(panel), sum); }
  static inline void pack(float* panel, int lane, const float* at, bool) { panel[lane] = *at; }
};

static inline uint32_t load_pair(const BFloat16* at, bool whole) {
  uint32_t pair = at[0].bits;
  if (whole) std::memcpy(&pair, at, 4);
  return pair;  // of an odd width the last pair's second value is zero
}

template <>
struct Dot<BFloat16> {
  static constexpr int kElements = 2;
  using Weight = VecBits;
  static inline Weight weight(const BFloat16* at, bool whole) { return load_pair(at, whole) + VecBits{}; }
#if defined(__AVX512BF16__)
  static constexpr int kUnits = kPanel;
  static inline Vec add(Vec sum, Weight w, const float* panel) {
    return reinterpret_cast<Vec>(_mm512_dpbf16_ps(reinterpret_cast<__m512>(sum), reinterpret_cast<__m512bh>(w),
                                                  reinterpret_cast<__m512bh>(load_bits(panel))));
  }
  static inline void pack(float* panel, int lane, const BFloat16* at, bool whole) {
    const uint32_t pair = load_pair(at, whole);
    std::memcpy(panel + lane, &pair, 4);
  }
#else
  // The two values of a pair become two rows of float32 panel.
  static constexpr int kUnits = 2 * kPanel;
  static inline Vec add(Vec sum, Weight w, const float* panel) {
    sum = fma(reinterpret_cast<Vec>(w << 16), load(panel), sum);
    return fma(reinterpret_cast<Vec>(w & 0xffff0000u), load(panel + kPanel), sum);
  }
  static inline void pack(float* panel, int lane, const BFloat16* at, bool whole) {
    panel[lane] = to_float(at[0]);
    panel[kPanel + lane] = whole ? to_float(at[1]) : 0.0f;
  }
#endif
};

// --- panels -----------------------------------------------------------------------------------------

template <class T>
const T* hidden_row(const EosArgs& a, int64_t member) {
  return static_cast<const T*>(a.hidden) + member / a.positions * a.hidden_stride_image +
         member % a.positions * a.hidden_stride_position;
}

template <class T>
const T* weight_row(const EosArgs& a, int64_t row) {
  return static_cast<const T*>(a.weight) + row * a.weight_stride_row;
}

// Words of memory between two panels.
static inline int64_t panel_size(int64_t panel_width) { return panel_width * kPanel; }

// Arranges the hidden states of `count` members (position of the flattened batch) side by side; the lanes behind
// them hold the last member once more. Short runs of steps, so that the lines being written stay in cache.
template <class T>
void pack_panel(const EosArgs& a, const int64_t* members, int count, float* panel) {
  constexpr int64_t kRun = 16;
  const T* rows[kPanel];
  for (int lane = 0; lane < kPanel; ++lane) rows[lane] = hidden_row<T>(a, members[lane < count ? lane : count - 1]);
  const int64_t whole = a.width / Dot<T>::kElements;
  for (int64_t begin = 0; begin < whole; begin += kRun) {
    const int64_t end = begin + kRun < whole ? begin + kRun : whole;
    for (int lane = 0; lane < kPanel; ++lane) {
      for (int64_t s = begin; s < end; ++s) {
        Dot<T>::pack(panel + s * Dot<T>::kUnits, lane, rows[lane] + s * Dot<T>::kElements, true);
      }
    }
  }
  if (whole * Dot<T>::kElements < a.width) {
    for (int lane = 0; lane < kPanel; ++lane) {
      Dot<T>::pack(panel + whole * Dot<T>::kUnits, lane, rows[lane] + whole * Dot<T>::kElements, false);
    }
  }
}

// --- tiles ------------------------------------------------------------------------------------------

// sums[r][j] = logits, without bias, of row r at the positions of vector j. Meanwhile the rows `ahead` elements
// further on are called into the cache.
template <class T, int rows, int vecs>
static inline void tile_logits(const T* const* row, int64_t width, const float* panel, int64_t ahead,
                               Vec (&sums)[kTileRows][kPanelVecs]) {
  constexpr int kElements = Dot<T>::kElements;
  constexpr int64_t kLineSteps = 64 / (kElements * static_cast<int64_t>(sizeof(T)));
  const int64_t whole = width / kElements;
  Vec sum[rows][vecs];
  for (int r = 0; r < rows; ++r) {
    for (int j = 0; j < vecs; ++j) sum[r][j] = Vec{};
  }
  const auto step = [&](int64_t s, bool complete) {
    for (int r = 0; r < rows; ++r) {
      const typename Dot<T>::Weight w = Dot<T>::weight(row[r] + s * kElements, complete);
      for (int j = 0; j < vecs; ++j) sum[r][j] = Dot<T>::add(sum[r][j], w, panel + s * Dot<T>::kUnits + j * kLanes);
    }
  };
  for (int64_t begin = 0; begin < whole; begin += kLineSteps) {
    const int64_t end = begin + kLineSteps < whole ? begin + kLineSteps : whole;
    for (int r = 0; r < rows; ++r) __builtin_prefetch(row[r] + begin * kElements + ahead);
    for (int64_t s = begin; s < end; ++s) step(s, true);
  }
  if (whole * kElements < width) step(whole, false);
  for (int r = 0; r < rows; ++r) {
    for (int j = 0; j < vecs; ++j) sums[r][j] = sum[r][j];
  }
}

// Logits, with bias, of up to kTileRows rows at the first `lanes` positions of a panel. The rows are
// ids[0..count), or first, first + 1, ... if ids is null.
template <class T>
static inline void logits(const EosArgs& a, const int32_t* ids, int64_t first, int count, const float* panel, int lanes,
                          Vec (&sums)[kTileRows][kPanelVecs]) {
  const T* row[kTileRows];
  for (int r = 0; r < kTileRows; ++r) {
    const int at = r < count ? r : count - 1;
    row[r] = weight_row<T>(a, ids != nullptr ? ids[at] : first + at);
  }
  const int64_t ahead = ids != nullptr ? 0 : kTileRows * a.weight_stride_row;
  if (count <= kSmallTileRows) {
    lanes <= kLanes ? tile_logits<T, kSmallTileRows, 1>(row, a.width, panel, ahead, sums)
                    : tile_logits<T, kSmallTileRows, 2>(row, a.width, panel, ahead, sums);
  } else {
    lanes <= kLanes ? tile_logits<T, kTileRows, 1>(row, a.width, panel, ahead, sums)
                    : tile_logits<T, kTileRows, 2>(row, a.width, panel, ahead, sums);
  }
  if (a.bias == nullptr) return;
  for (int r = 0; r < count; ++r) {
    const Vec bias = splat(a.bias[ids != nullptr ? ids[r] : first + r]);
    for (int j = 0; j < kPanelVecs; ++j) sums[r][j] += bias;
  }
}

}  // namespace dove::cpu::DOVE_ISA
