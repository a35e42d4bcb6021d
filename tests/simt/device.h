// The other half of csrc/cuda/device.h: what it says in PTX, said in C++.
#pragma once

#include "language.h"

namespace dove::cuda {

// --- 16-bit floating point: storage only, as the kernels use it ---------------------------------------------
struct BFloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

inline float to_float(float v) { return v; }
inline float to_float(BFloat16 v) { return __uint_as_float(uint32_t{v.bits} << 16); }
inline float to_float(Float16 v) {
  const uint32_t sign = (v.bits & 0x8000u) << 16, exponent = v.bits >> 10 & 31, fraction = v.bits & 0x3ffu;
  if (exponent == 0) {  // zero and subnormal numbers: fraction * 2^-24
    const float magnitude = static_cast<float>(fraction) * 5.9604644775390625e-8f;
    return __uint_as_float(__float_as_uint(magnitude) | sign);
  }
  if (exponent == 31) return __uint_as_float(sign | 0x7f800000u | fraction << 13);
  return __uint_as_float(sign | (exponent + 112) << 23 | fraction << 13);
}

template <class T>
T from_float(float v);
template <>
inline float from_float<float>(float v) {
  return v;
}
template <>
inline BFloat16 from_float<BFloat16>(float v) {
  const uint32_t bits = __float_as_uint(v);
  if (v != v) return {0x7fff};
  return {static_cast<uint16_t>((bits + 0x7fffu + (bits >> 16 & 1)) >> 16)};
}
template <>
inline Float16 from_float<Float16>(float v) {
  const uint32_t bits = __float_as_uint(v), magnitude = bits & 0x7fffffffu;
  const auto sign = static_cast<uint16_t>(bits >> 16 & 0x8000u);
  if (magnitude > 0x7f800000u) return {0x7fff};
  if (magnitude >= 0x477ff000u) return {static_cast<uint16_t>(sign | 0x7c00u)};  // rounds to infinity
  if (magnitude < 0x38800000u) {                                                 // subnormal: units of 2^-24
    return {
        static_cast<uint16_t>(sign | static_cast<uint16_t>(std::nearbyint(__uint_as_float(magnitude) * 16777216.0f)))};
  }
  const uint32_t rounded = magnitude + 0xfffu + (magnitude >> 13 & 1);
  return {static_cast<uint16_t>(sign | ((rounded - 0x38000000u) >> 13))};
}

template <class T>
uint32_t pack2(float low, float high) {
  return from_float<T>(low).bits | uint32_t{from_float<T>(high).bits} << 16;
}
template <class T>
float2 unpack2(uint32_t v) {
  return {to_float(T{static_cast<uint16_t>(v)}), to_float(T{static_cast<uint16_t>(v >> 16)})};
}

inline float fast_exp2(float v) { return std::exp2(v); }

// --- Shared memory ------------------------------------------------------------------------------------------
inline unsigned char* dynamic_shared() { return simt::machine.dynamic_shared; }

#define DOVE_SHARED(type, name, dims)             \
  typedef type name##_type dims;                  \
  static ::simt::SharedVariable name##_variable;  \
  name##_type& name = *static_cast<name##_type*>( \
      name##_variable.get(sizeof(name##_type), alignof(name##_type) < 16 ? 16 : alignof(name##_type)))

// --- Wide loads and stores ----------------------------------------------------------------------------------
template <class V>
V load_as(const void* p) {
  simt::check_aligned(p, sizeof(V), "load");
  V v;
  std::memcpy(&v, p, sizeof(V));
  return v;
}
template <class V>
void store_as(void* p, V v) {
  simt::check_aligned(p, sizeof(V), "store");
  std::memcpy(p, &v, sizeof(V));
}

// --- Asynchronous copies: the target is NaN from the request until the wait that covers it --------------------
template <int kBytes>
void cp_async(void* target, const void* source, bool valid) {
  simt::check_shared(target, kBytes, "cp.async target");
  simt::check_aligned(target, kBytes, "cp.async target");
  if (valid) simt::check_aligned(source, kBytes, "cp.async source");
  std::memset(target, 0xff, kBytes);
  simt::machine.fibers[simt::machine.thread].open.push_back({target, source, kBytes, valid ? kBytes : 0});
}
inline void cp_async16(void* target, const void* source, bool valid) { cp_async<16>(target, source, valid); }
inline void cp_async4(void* target, const void* source, bool valid) { cp_async<4>(target, source, valid); }
inline void cp_async_commit() {
  auto& fiber = simt::machine.fibers[simt::machine.thread];
  fiber.groups.push_back(std::move(fiber.open));
  fiber.open.clear();
}
template <int kNewest>
void cp_async_wait() {
  auto& groups = simt::machine.fibers[simt::machine.thread].groups;
  while (groups.size() > kNewest) {
    for (const simt::PendingCopy& c : groups.front()) {
      std::memcpy(c.target, c.source, c.source_bytes);
      std::memset(static_cast<char*>(c.target) + c.source_bytes, 0, c.bytes - c.source_bytes);
    }
    groups.erase(groups.begin());
  }
}

// --- Counters that blocks share --------------------------------------------------------------------------------
inline int arrive(int* counter) {
  const int before = (*counter)++;
  simt::end_turn();
  return before;
}
inline void wait_for(const int* counter, int count) {
  while (*counter < count) simt::wait_for_other_blocks();
}

// --- Tensor cores -------------------------------------------------------------------------------------------
namespace emulated {

struct MatrixLoad {
  const void* row;
  uint32_t* result;
};

template <bool kTranspose>
void load_matrices(simt::Warp&, simt::Fiber* lanes) {
  const auto operand = [&](int lane) { return static_cast<const MatrixLoad*>(lanes[lane].operands); };
  const auto element = [&](int matrix, int row, int column) {
    uint16_t v;
    std::memcpy(&v, static_cast<const char*>(operand(matrix * 8 + row)->row) + 2 * column, 2);
    return uint32_t{v};
  };
  for (int lane = 0; lane < 32; ++lane) {
    const int i = lane / 4, j = lane % 4 * 2;
    for (int m = 0; m < 4; ++m) {
      operand(lane)->result[m] =
          kTranspose ? element(m, j, i) | element(m, j + 1, i) << 16 : element(m, i, j) | element(m, i, j + 1) << 16;
    }
  }
}

struct MatrixProduct {
  float* d;
  const uint32_t* a;
  uint32_t b0, b1;
};

// Fragment layout of mma.m16n8k16 (PTX ISA): lane = 4 * group + member. A: registers 0..3 hold rows group,
// group + 8, group, group + 8 and columns 2 * member (+ 1), the last two 8 further. B: rows 2 * member (+ 1),
// the second register 8 further, column group. C: rows group, group + 8, columns 2 * member (+ 1).
// A tenth of what the rows in 16 bits take, and so optimised whatever the rest is.
template <class T>
__attribute__((optimize("O3"))) void multiply(simt::Warp&, simt::Fiber* lanes) {
  float a[16][16], b[16][8];
  for (int lane = 0; lane < 32; ++lane) {
    const auto* own = static_cast<const MatrixProduct*>(lanes[lane].operands);
    const int group = lane / 4, column = lane % 4 * 2;
    for (int r = 0; r < 4; ++r) {
      const float2 v = unpack2<T>(own->a[r]);
      float* to = &a[group + r % 2 * 8][column + r / 2 * 8];
      to[0] = v.x;
      to[1] = v.y;
    }
    const float2 low = unpack2<T>(own->b0), high = unpack2<T>(own->b1);
    b[column][group] = low.x;
    b[column + 1][group] = low.y;
    b[column + 8][group] = high.x;
    b[column + 9][group] = high.y;
  }
  float c[16][8] = {};
  for (int i = 0; i < 16; ++i) {
    for (int k = 0; k < 16; ++k) {
      for (int j = 0; j < 8; ++j) c[i][j] += a[i][k] * b[k][j];
    }
  }
  for (int lane = 0; lane < 32; ++lane) {
    float* d = static_cast<const MatrixProduct*>(lanes[lane].operands)->d;
    const int group = lane / 4, column = lane % 4 * 2;
    d[0] += c[group][column];
    d[1] += c[group][column + 1];
    d[2] += c[group + 8][column];
    d[3] += c[group + 8][column + 1];
  }
}

}  // namespace emulated

template <bool kTranspose>
void ldmatrix(const char* name, uint32_t (&result)[4], const void* row) {
  simt::check_shared(row, 16, name);
  simt::check_aligned(row, 16, name);
  const emulated::MatrixLoad mine{row, result};
  simt::warp_operation(~0u, name, &mine, emulated::load_matrices<kTranspose>);
}
inline void ldmatrix_x4(uint32_t (&result)[4], const void* row) { ldmatrix<false>("ldmatrix", result, row); }
inline void ldmatrix_x4_trans(uint32_t (&result)[4], const void* row) { ldmatrix<true>("ldmatrix.trans", result, row); }

// d += a * b on 16 x 16 times 16 x 8.
template <class T>
void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  const emulated::MatrixProduct mine{d, a, b0, b1};
  simt::warp_operation(~0u, "mma.sync", &mine, emulated::multiply<T>);
}

}  // namespace dove::cuda
