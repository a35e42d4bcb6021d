// Packing of attention's operands into the layouts of attention_tiles.h, with rotation and conversion on the way.
#pragma once

#include "attention_sequence.h"
#include "attention_tiles.h"

namespace dove::cpu::DOVE_ISA {

struct Rotary {
  const float* table;  // the row of position 0: cosines, then sines; or null
  int64_t dim;
};

constexpr int64_t kMaxDim = 256;

#if defined(__AVX512F__)
// Sixteen dimensions rotated in one register: both halves at once, the sine of the first half negated.
static inline Vec rotate_lanes(Vec x, const float* cosines_sines, float sign) {
  VecInt lane;
  for (int i = 0; i < kLanes; ++i) lane[i] = i;
  const auto permute = [](Vec v, VecInt index) {
    return reinterpret_cast<Vec>(_mm512_permutexvar_ps(reinterpret_cast<__m512i>(index), reinterpret_cast<__m512>(v)));
  };
  const Vec table = load(cosines_sines);
  const Vec cosines = permute(table, lane & 7), sines = permute(table, lane | 8);
  const Vec signs = lane < 8 ? splat(-sign) : splat(sign);
  return fma(x, cosines, permute(x, lane ^ 8) * (sines * signs));
}
#endif

// Hands the row to `emit(d, Vec of dimensions d..)`, rotated by its position; `sign` -1 rotates back. The rotation
// stays in registers where it can: a vector loaded right after narrower stores to it would wait for them.
template <class Element, class Emit>
static inline void rotate_row(const Element* from, int64_t dim, const Rotary& rotary, int64_t position, float sign,
                              const Emit& emit) {
  int64_t done = 0;
  if (rotary.table != nullptr && rotary.dim > 0) {
    const int64_t half = rotary.dim / 2;
    const float* cosines = rotary.table + position * rotary.dim;
    const float* sines = cosines + half;
#if defined(__AVX512F__)
    if (rotary.dim == kLanes) {
      emit(0, rotate_lanes(load(from), cosines, sign));
      done = kLanes;
    } else
#endif
        if (half % kLanes == 0) {
      for (int64_t d = 0; d < half; d += kLanes) {
        const Vec first = load(from + d), second = load(from + half + d);
        const Vec cosine = load(cosines + d), sine = load(sines + d) * sign;
        emit(d, first * cosine - second * sine);
        emit(half + d, second * cosine + first * sine);
      }
      done = rotary.dim;
    } else {
      float row[kMaxDim];
      done = round_up(rotary.dim, kLanes);
      for (int64_t d = 0; d < done; d += kLanes) store(row + d, load(from + d));
      for (int64_t d = 0; d < half; ++d) {
        const float first = row[d], second = row[half + d], sine = sign * sines[d];
        row[d] = first * cosines[d] - second * sine;
        row[half + d] = second * cosines[d] + first * sine;
      }
      for (int64_t d = 0; d < done; d += kLanes) emit(d, load(row + d));
    }
  }
  for (; done < dim; done += kLanes) emit(done, load(from + done));
}

template <class Units, class Element>
static inline void pack_row(const Element* from, int64_t dim, const Rotary& rotary, int64_t position, Unit* to) {
  rotate_row(from, dim, rotary, position, 1.0f, [to](int64_t d, Vec v) { Units::store_row(to, d, v); });
}

// to[step * kPanel + lane] = rows[lane][step] for kLanes rows that lie `stride` units apart.
static inline void transpose(const Unit* rows, int64_t stride, int64_t steps, Unit* to) {
#if defined(__AVX512F__)
  VecBits lane;
  for (int i = 0; i < kLanes; ++i) lane[i] = i;
  for (int64_t first = 0; first < steps; first += kLanes) {
    VecBits t[kLanes];
    for (int i = 0; i < kLanes; ++i) t[i] = load_bits(rows + i * stride + first);
    // Swap the off-diagonal halves of ever smaller squares.
#pragma GCC unroll 4
    for (int width = kLanes / 2; width > 0; width /= 2) {
      const VecBits upper_of_a = (lane & width) == 0 ? lane : lane - width + kLanes;
      const VecBits lower_of_b = (lane & width) == 0 ? lane + width : lane + kLanes;
#pragma GCC unroll 16
      for (int i = 0; i < kLanes; ++i) {
        if (i & width) continue;
        const __m512i a = reinterpret_cast<__m512i>(t[i]), b = reinterpret_cast<__m512i>(t[i + width]);
        t[i] = reinterpret_cast<VecBits>(_mm512_permutex2var_epi32(a, reinterpret_cast<__m512i>(upper_of_a), b));
        t[i + width] =
            reinterpret_cast<VecBits>(_mm512_permutex2var_epi32(a, reinterpret_cast<__m512i>(lower_of_b), b));
      }
    }
    for (int i = 0; i < kLanes && first + i < steps; ++i) store_bits(to + (first + i) * kPanel, t[i]);
  }
#else
  for (int64_t step = 0; step < steps; ++step) {
    for (int i = 0; i < kLanes; ++i) std::memcpy(to + step * kPanel + i, rows + i * stride + step, 4);
  }
#endif
}

// Units of one transposed row in the scratch of pack_panels: transpose() reads whole vectors.
static inline int64_t row_units(int64_t dim) { return round_up(dim, kLanes); }

// Rows 0..count of `from` become columns of panels, rotated by their positions; columns up to the next multiple of
// kPanel become zero. `scratch`: kLanes rows of row_units(dim).
template <class Units, class Element>
static void pack_panels(const Rows<Element>& from, int64_t count, int64_t dim, const Rotary& rotary, Unit* scratch,
                        Unit* to) {
  const int64_t steps = dim / Units::kPerUnit, stride = row_units(dim);
  for (int64_t first = 0; first < round_up(count, kPanel); first += kLanes) {
    for (int64_t i = 0; i < kLanes; ++i) {
      if (first + i < count) {
        pack_row<Units>(from[first + i], dim, rotary, first + i, scratch + i * stride);
      } else {
        std::memset(scratch + i * stride, 0, stride * sizeof(Unit));
      }
    }
    transpose(scratch, stride, steps, to + first / kPanel * (steps * kPanel) + first % kPanel);
  }
}

// Rows 0..count of `from` become rows of units [step][dim]; the missing neighbour of a last row is zero.
template <class Units, class Element>
static void pack_pairs(const Rows<Element>& from, int64_t count, int64_t dim, Unit* to) {
  for (int64_t i = 0; i < count; i += Units::kPerUnit) {
    if constexpr (Units::kPerUnit == 2) {
      const auto *a = from[i], *b = i + 1 < count ? from[i + 1] : nullptr;
      for (int64_t d = 0; d < dim; d += kLanes) {
        store_bits(to + d, b != nullptr ? pair_up(a + d, b + d) : load_halves(a + d));
      }
    } else {
      for (int64_t d = 0; d < dim; d += kLanes) store(reinterpret_cast<float*>(to) + d, load(from[i] + d));
    }
    to += dim;
  }
}

}  // namespace dove::cpu::DOVE_ISA
