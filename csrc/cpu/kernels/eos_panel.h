// Panels: the hidden states of kPanel positions side by side, and one step of their dot products with a row.
//
//   panel[step][lane]   step = one value of the hidden state; in bfloat16 a pair of neighbours, in 32 bits
//
// Where the instruction set has no dot product of bfloat16 pairs, the two values of a pair become two rows of
// float32 panel. Of an odd width the last pair's second value is zero.
#pragma once

#include "dove/eos.h"
#include "vec.h"

namespace dove::cpu::DOVE_ISA {

constexpr int kPanelVecs = 2;
constexpr int kPanel = kPanelVecs * kLanes;

// Dot<T>: kElements values of the sum make a step, which takes kUnits words of panel.
template <class T>
struct Dot;

template <>
struct Dot<float> {
  static constexpr int kElements = 1;
  static constexpr int kUnits = kPanel;
  using Weight = Vec;
  static inline Weight weight(const float* at, bool) { return splat(*at); }
  static inline Vec add(Vec sum, Weight w, const float* panel) { return fma(w, load(panel), sum); }
  static inline uint32_t word(const float* at, bool) {
    uint32_t bits;
    std::memcpy(&bits, at, 4);
    return bits;
  }
  static inline void put(float* panel, VecBits words) { store_bits(panel, words); }
};

template <>
struct Dot<BFloat16> {
  static constexpr int kElements = 2;
  using Weight = VecBits;
  static inline uint32_t word(const BFloat16* at, bool whole) {
    uint32_t pair = at[0].bits;
    if (whole) std::memcpy(&pair, at, 4);
    return pair;
  }
  static inline Weight weight(const BFloat16* at, bool whole) { return word(at, whole) + VecBits{}; }
#if defined(__AVX512BF16__)
  static constexpr int kUnits = kPanel;
  static inline Vec add(Vec sum, Weight w, const float* panel) {
    return reinterpret_cast<Vec>(_mm512_dpbf16_ps(reinterpret_cast<__m512>(sum), reinterpret_cast<__m512bh>(w),
                                                  reinterpret_cast<__m512bh>(load_bits(panel))));
  }
  static inline void put(float* panel, VecBits words) { store_bits(panel, words); }
#else
  static constexpr int kUnits = 2 * kPanel;
  static inline Vec add(Vec sum, Weight w, const float* panel) {
    sum = fma(reinterpret_cast<Vec>(w << 16), load(panel), sum);
    return fma(reinterpret_cast<Vec>(w & 0xffff0000u), load(panel + kPanel), sum);
  }
  static inline void put(float* panel, VecBits words) {
    store_bits(panel, words << 16);
    store_bits(panel + kPanel, words & 0xffff0000u);
  }
#endif
};

template <class T>
const T* hidden_row(const EosArgs& a, int64_t member) {
  return static_cast<const T*>(a.hidden) + member / a.positions * a.hidden_stride_image +
         member % a.positions * a.hidden_stride_position;
}

// Words of memory between two panels.
static inline int64_t panel_size(int64_t panel_width) { return panel_width * kPanel; }

// Lanes of a and b in turns: a0 b0 a1 b1 ... of their lower (upper) halves.
static inline void interleave(VecBits a, VecBits b, VecBits* lower, VecBits* upper) {
#if defined(__AVX512F__)
  const __m512i low = _mm512_set_epi32(23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
  const __m512i high = _mm512_set_epi32(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8);
  *lower = reinterpret_cast<VecBits>(
      _mm512_permutex2var_epi32(reinterpret_cast<__m512i>(a), low, reinterpret_cast<__m512i>(b)));
  *upper = reinterpret_cast<VecBits>(
      _mm512_permutex2var_epi32(reinterpret_cast<__m512i>(a), high, reinterpret_cast<__m512i>(b)));
#else
  for (int i = 0; i < kLanes / 2; ++i) {
    (*lower)[2 * i] = a[i];
    (*lower)[2 * i + 1] = b[i];
    (*upper)[2 * i] = a[kLanes / 2 + i];
    (*upper)[2 * i + 1] = b[kLanes / 2 + i];
  }
#endif
}

// Transposes kLanes x kLanes words: log2(kLanes) rounds of interleaving row i with row i + kLanes / 2.
static inline void transpose(VecBits (&rows)[kLanes]) {
  for (int round = 1; round < kLanes; round *= 2) {
    VecBits next[kLanes];
    for (int i = 0; i < kLanes / 2; ++i) interleave(rows[i], rows[i + kLanes / 2], &next[2 * i], &next[2 * i + 1]);
    for (int i = 0; i < kLanes; ++i) rows[i] = next[i];
  }
}

// Arranges the hidden states of `count` members (positions of the flattened batch) side by side; the lanes behind
// them hold the last member once more.
template <class T>
void pack_panel(const EosArgs& a, const int64_t* members, int count, float* panel) {
  constexpr int kElements = Dot<T>::kElements;
  const T* rows[kPanel];
  for (int lane = 0; lane < kPanel; ++lane) rows[lane] = hidden_row<T>(a, members[lane < count ? lane : count - 1]);
  const int64_t whole = a.width / kElements;
  const int64_t steps = (a.width + kElements - 1) / kElements;
  int64_t step = 0;
  for (; step + kLanes <= whole; step += kLanes) {
    for (int begin = 0; begin < kPanel; begin += kLanes) {
      VecBits block[kLanes];
      for (int i = 0; i < kLanes; ++i) block[i] = load_bits(rows[begin + i] + step * kElements);
      transpose(block);
      for (int i = 0; i < kLanes; ++i) Dot<T>::put(panel + (step + i) * Dot<T>::kUnits + begin, block[i]);
    }
  }
  for (; step < steps; ++step) {
    for (int begin = 0; begin < kPanel; begin += kLanes) {
      VecBits words;
      for (int i = 0; i < kLanes; ++i) words[i] = Dot<T>::word(rows[begin + i] + step * kElements, step < whole);
      Dot<T>::put(panel + step * Dot<T>::kUnits + begin, words);
    }
  }
}

}  // namespace dove::cpu::DOVE_ISA
