// Logits of a tile of vocabulary rows at a panel of positions: the arithmetic that both EOS kernels share.
//
// Positions lie across the lanes of the vectors, and a weight is broadcast to all of them. So a logit is summed
// along `width` by one lane alone, in ascending order, whatever tile it is part of: the EOS logit, the witness
// rows and the full scan agree to the last bit. The weights are read as they lie in memory; only the hidden
// states are rearranged (eos_panel.h), once for many rows.
//
// A tile keeps kTileRows x kPanelVecs accumulators in registers: two loads of hidden values and one broadcast a
// row serve twice that many multiply-adds. With up to kLanes positions half a panel is computed; then the time
// goes into streaming the weights, and the loop runs at the speed of memory.
#pragma once

#include "eos_panel.h"

namespace dove::cpu::DOVE_ISA {

// 24 of 32 registers hold sums, or 12 of 16.
#if defined(__AVX512F__)
constexpr int kTileRows = 12;
constexpr int kSmallTileRows = 4;
#else
constexpr int kTileRows = 6;
constexpr int kSmallTileRows = 2;
#endif

template <class T>
const T* weight_row(const EosArgs& a, int64_t row) {
  return static_cast<const T*>(a.weight) + row * a.weight_stride_row;
}

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
