// x * sigmoid(x) as the kernels here compute it.
#pragma once

#include "vec.h"

namespace dove::cpu::DOVE_ISA {
namespace {

// The last argument says what the result will be rounded to.
inline Vec quotient(Vec a, Vec b, float) { return a / b; }

// What is rounded to 8 bits does not need a division's 24: 14 do, at a fraction of its time.
inline Vec quotient(Vec a, Vec b, BFloat16) {
#if defined(__AVX512F__)
  return a * reinterpret_cast<Vec>(_mm512_rcp14_ps(reinterpret_cast<__m512>(b)));
#else
  return a / b;
#endif
}

template <class T>
inline Vec silu(Vec y) {
  return quotient(y, 1.0f + exp2(y * -1.44269504f), T{});
}

}  // namespace
}  // namespace dove::cpu::DOVE_ISA
