// What the two attention kernels share: the block of registers that multiplies, and the layouts it reads.
//
// Every matrix product of attention, forward and backward, is C[rows, columns] (+)= A[rows, steps] B[steps, columns]
// on 32-bit units. A unit is one float, or a pair of bfloat16 that are neighbours along `steps` where the
// instruction set multiplies such pairs; either way A is read by broadcasting a unit and B by whole vectors:
//   A rows      [row][step]                       queries, probabilities: `pack_row`
//   B panels    [column / kPanel][step][kPanel]   keys, transposed: `pack_panels`
//   B rows      [step][column]                    values: `pack_pairs`
// Packing costs O(N D) against the products' O(N^2 D) and buys dense aligned reads, the rotation and the
// conversion once per key instead of once per query tile.
#pragma once

#include "dove/attention.h"
#include "vec.h"

namespace dove::cpu::DOVE_ISA {

typedef uint32_t Unit;

// The accumulators of one register block: kBlockRows x kBlockVectors of the 32 (AVX-512) or 16 registers, with
// one row of B and one broadcast of A beside them.
constexpr int kBlockRows = 6;
#if defined(__AVX512F__)
constexpr int kBlockVectors = 4;
#else
constexpr int kBlockVectors = 2;
#endif
constexpr int kPanel = kBlockVectors * kLanes;

static inline int64_t round_up(int64_t n, int64_t multiple) { return (n + multiple - 1) / multiple * multiple; }
static inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

// --- units ------------------------------------------------------------------------------------------

struct FloatUnits {
  static constexpr int kPerUnit = 1;
  static inline Vec multiply_add(Unit a, VecBits b, Vec c) {
    float x;
    std::memcpy(&x, &a, 4);
    return fma(splat(x), reinterpret_cast<Vec>(b), c);
  }
  static inline void store_row(Unit* row, int64_t at, Vec v) { store(reinterpret_cast<float*>(row) + at, v); }
};

#if defined(__AVX512BF16__)
struct BFloat16Units {
  static constexpr int kPerUnit = 2;
  static inline Vec multiply_add(Unit a, VecBits b, Vec c) {
    const VecBits broadcast = VecBits{} + a;
    return reinterpret_cast<Vec>(_mm512_dpbf16_ps(reinterpret_cast<__m512>(c), reinterpret_cast<__m512bh>(broadcast),
                                                  reinterpret_cast<__m512bh>(b)));
  }
  static inline void store_row(Unit* row, int64_t at, Vec v) { store(reinterpret_cast<BFloat16*>(row) + at, v); }
};
#endif

// How the elements of a dtype are multiplied: bfloat16 as pairs where the instruction set can, else as floats.
template <class Element>
struct UnitsOf {
  typedef FloatUnits Type;
};
#if defined(__AVX512BF16__)
template <>
struct UnitsOf<BFloat16> {
  typedef BFloat16Units Type;
};
#endif

// Elements at `a` and `b`, neighbours along the steps, as one vector of pairs.
static inline VecBits pair_up(const BFloat16* a, const BFloat16* b) { return load_halves(a) | load_halves(b) << 16; }
static inline VecBits pair_up(Vec a, Vec b) { return round_to_bfloat16(a) | round_to_bfloat16(b) << 16; }
static inline VecBits pair_up(const float* a, const float* b) { return pair_up(load(a), load(b)); }

// --- products ---------------------------------------------------------------------------------------

enum class Into { kOverwrite, kAdd, kRescale };

struct Product {
  const Unit* a;
  int64_t a_row, a_step;  // units between rows and between steps of A
  const Unit* b;
  int64_t b_step;
  int64_t steps;
  float* c;
  int64_t c_row;
  const float* rescale;  // kRescale: C = rescale[row] * C + A B
};

template <class Units, Into into, int rows, int vectors>
static inline void multiply_block(const Product& p) {
  Vec sum[rows][vectors];
  for (int r = 0; r < rows; ++r) {
    for (int x = 0; x < vectors; ++x) {
      sum[r][x] = into == Into::kOverwrite ? Vec{} : load(p.c + r * p.c_row + x * kLanes);
      if (into == Into::kRescale) sum[r][x] *= splat(p.rescale[r]);
    }
  }
  const Unit* a = p.a;
  const Unit* b = p.b;
  for (int64_t step = 0; step < p.steps; ++step) {
    VecBits right[vectors];
    for (int x = 0; x < vectors; ++x) right[x] = load_bits(b + x * kLanes);
    for (int r = 0; r < rows; ++r) {
      Unit left;
      std::memcpy(&left, a + r * p.a_row, 4);
      for (int x = 0; x < vectors; ++x) sum[r][x] = Units::multiply_add(left, right[x], sum[r][x]);
    }
    a += p.a_step;
    b += p.b_step;
  }
  for (int r = 0; r < rows; ++r) {
    for (int x = 0; x < vectors; ++x) store(p.c + r * p.c_row + x * kLanes, sum[r][x]);
  }
}

// A block that is `vectors` wide, up to kBlockVectors.
template <class Units, Into into, int rows>
static inline void multiply(const Product& p, int vectors) {
  switch (vectors) {
    case 1:
      return multiply_block<Units, into, rows, 1>(p);
    case 2:
      return multiply_block<Units, into, rows, 2>(p);
#if defined(__AVX512F__)
    case 3:
      return multiply_block<Units, into, rows, 3>(p);
    case 4:
      return multiply_block<Units, into, rows, 4>(p);
#endif
  }
}

// The same for any width that is a multiple of kLanes; B is in rows.
template <class Units, Into into, int rows>
static inline void multiply_wide(Product p, int64_t columns) {
  for (int64_t column = 0; column < columns; column += kPanel) {
    multiply<Units, into, rows>(p, static_cast<int>(smaller(kPanel, columns - column) / kLanes));
    p.b += kPanel;
    p.c += kPanel;
  }
}

// --- packing ----------------------------------------------------------------------------------------

// Which rows of an operand one (sequence, head) owns.
template <class Element>
struct Rows {
  Element* data;
  int64_t stride;
  Element* operator[](int64_t row) const { return data + row * stride; }
};

struct Rotary {
  const float* table;  // the row of position 0, or null
  int64_t dim;
};

// One row as floats, rotated by its position. `sign` -1 rotates back.
static inline void rotate(float* __restrict row, const Rotary& rotary, int64_t position, float sign) {
  const int64_t half = rotary.dim / 2;
  const float* __restrict cosines = rotary.table + position * rotary.dim;
  const float* __restrict sines = cosines + half;
  for (int64_t d = 0; d < half; ++d) {
    const float first = row[d], second = row[half + d], sine = sign * sines[d];
    row[d] = first * cosines[d] - second * sine;
    row[half + d] = second * cosines[d] + first * sine;
  }
}

template <class Element>
static inline void load_row(const Element* from, int64_t dim, const Rotary& rotary, int64_t position, float* to) {
  for (int64_t d = 0; d < dim; d += kLanes) store(to + d, load(from + d));
  if (rotary.table != nullptr) rotate(to, rotary, position, 1.0f);
}

template <class Units>
static inline void pack_row(const float* from, int64_t dim, Unit* to) {
  for (int64_t d = 0; d < dim; d += kLanes) Units::store_row(to, d, load(from + d));
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
// kPanel become zero. `scratch`: kLanes + 1 rows of row_units(dim).
template <class Units, class Element>
static void pack_panels(const Rows<Element>& from, int64_t count, int64_t dim, const Rotary& rotary, Unit* scratch,
                        Unit* to) {
  const int64_t steps = dim / Units::kPerUnit, stride = row_units(dim);
  float* row = reinterpret_cast<float*>(scratch + kLanes * stride);
  for (int64_t first = 0; first < round_up(count, kPanel); first += kLanes) {
    for (int64_t i = 0; i < kLanes; ++i) {
      if (first + i < count) {
        load_row(from[first + i], dim, rotary, first + i, row);
        pack_row<Units>(row, dim, scratch + i * stride);
      } else {
        std::memset(scratch + i * stride, 0, stride * sizeof(Unit));
      }
    }
    transpose(scratch, stride, steps, to + first / kPanel * (steps * kPanel) + first % kPanel);
  }
}

// Rows 0..count of `from` become rows of units [step][dim]; a missing neighbour is zero. `load` turns a row's
// index into a pointer to its elements.
template <class Units, class Element, class Load>
static void pack_pairs(int64_t count, int64_t dim, Unit* to, const Element* zeros, const Load& load_at) {
  for (int64_t i = 0; i < count; i += Units::kPerUnit) {
    const Element* a = load_at(i, 0);
    if constexpr (Units::kPerUnit == 2) {
      const Element* b = i + 1 < count ? load_at(i + 1, 1) : zeros;
      for (int64_t d = 0; d < dim; d += kLanes) store_bits(to + d, pair_up(a + d, b + d));
    } else {
      for (int64_t d = 0; d < dim; d += kLanes) store(reinterpret_cast<float*>(to) + d, load(a + d));
    }
    to += dim;
  }
}

// --- one (sequence, head) ---------------------------------------------------------------------------

struct Sequence {
  int64_t start_q, start_k;  // first row in the packed operand; 0 when padded
  int64_t len_q, len_k;
  int64_t offset;  // position of query 0
  int64_t prefix, limit;

  // Keys [0, visible) are what query i sees. Never falls with i.
  int64_t visible(int64_t i) const { return larger(0, smaller(limit, larger(offset + i + 1, prefix))); }
};

static inline Sequence sequence_of(const AttentionArgs& a, int64_t b) {
  Sequence s{0, 0, a.len_q, a.len_k, 0, a.prefix, a.len_k};
  if (a.cu_seqlens_q != nullptr) {
    s.start_q = a.cu_seqlens_q[b];
    s.start_k = a.cu_seqlens_k[b];
    s.len_q = a.cu_seqlens_q[b + 1] - s.start_q;
    s.len_k = s.limit = a.cu_seqlens_k[b + 1] - s.start_k;
  }
  if (a.kv_lens != nullptr) s.limit = a.kv_lens[b];
  s.offset = s.len_k - s.len_q;
  return s;
}

template <class Element>
static inline Rows<Element> rows_of(const AttentionRows& r, int64_t b, int64_t start, int64_t head) {
  return {static_cast<Element*>(r.data) + b * r.stride_b + start * r.stride_n + head * r.stride_h, r.stride_n};
}

static inline float* lse_of(const AttentionArgs& a, const Sequence& s, int64_t b, int64_t head) {
  const int64_t row = a.cu_seqlens_q != nullptr ? head : b * a.heads + head;
  return a.lse + row * a.len_q + s.start_q;
}

// Hands out pieces of a thread's workspace, each aligned to a cache line.
struct Scratch {
  char* next;
  template <class T>
  T* take(int64_t count) {
    T* piece = reinterpret_cast<T*>(next);
    next += round_up(count * static_cast<int64_t>(sizeof(T)), 64);
    return piece;
  }
};

}  // namespace dove::cpu::DOVE_ISA
