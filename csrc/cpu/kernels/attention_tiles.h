// What the two attention kernels share: the block of registers that multiplies, and the layouts it reads.
//
// Every matrix product of attention, forward and backward, is C[rows, columns] (+)= A[rows, steps] B[steps, columns]
// on 32-bit units. A unit is one float, or a pair of bfloat16 that are neighbours along `steps` where the
// instruction set multiplies such pairs; either way A is read by broadcasting a unit and B by whole vectors:
//   A rows      [row][step]                       queries, probabilities: pack_row()
//   B panels    [column / kPanel][step][kPanel]   keys, transposed: pack_panels()
//   B rows      [step][column]                    values: pack_pairs()
// Packing costs O(N D) against the products' O(N^2 D) and buys dense aligned reads, the rotation and the
// conversion once per key instead of once per query tile.
#pragma once

#include "dove/common.h"
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

}  // namespace dove::cpu::DOVE_ISA
