// The CUDA language as g++ can take it: keywords, built-in variables, vector types, warp functions, atomics and
// the device mathematics that the kernels use. Included through device.h.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "block.h"

#define __global__
#define __device__
#define __host__
#define __constant__ static
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)
#define __align__(n) alignas(n)
#define __grid_constant__

namespace simt {
extern Index block_index, block_dim, grid_dim;
}

#define threadIdx (::simt::machine.fibers[::simt::machine.thread].index)
#define blockIdx (::simt::block_index)
#define blockDim (::simt::block_dim)
#define gridDim (::simt::grid_dim)
#define warpSize 32

struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
struct alignas(8) uint2 {
  unsigned x, y;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
struct alignas(8) int2 {
  int x, y;
};
struct alignas(16) int4 {
  int x, y, z, w;
};
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
inline int2 make_int2(int x, int y) { return {x, y}; }
inline int4 make_int4(int x, int y, int z, int w) { return {x, y, z, w}; }

using std::max;
using std::min;

// --- Barriers ---------------------------------------------------------------------------------------------
inline void __syncthreads() { simt::block_barrier(0); }
inline int __syncthreads_count(int p) { return simt::block_barrier(p != 0); }
inline int __syncthreads_or(int p) { return simt::block_barrier(p != 0) != 0; }
inline int __syncthreads_and(int p) { return simt::block_barrier(p == 0) == 0; }
inline void __syncwarp(unsigned mask = ~0u) {
  simt::warp_operation(mask, "__syncwarp", nullptr, [](simt::Warp&, simt::Fiber*) {});
}
inline void __threadfence() {}
inline void __threadfence_block() {}

// --- Warp functions ---------------------------------------------------------------------------------------
namespace simt {

struct Exchange {
  uint64_t value;
  int source;  // the lane to read, or outside 0..31 for the lane's own value
  uint64_t* result;
};

template <class T>
T shuffle(unsigned mask, const char* name, T value, int source) {
  static_assert(sizeof(T) <= 8);
  uint64_t bits = 0, result = 0;
  std::memcpy(&bits, &value, sizeof(T));
  const Exchange mine{bits, source, &result};
  warp_operation(mask, name, &mine, [](Warp& w, Fiber* lanes) {
    for (int i = 0; i < kWarp; ++i) {
      if (!(w.mask >> i & 1)) continue;
      const auto* own = static_cast<const Exchange*>(lanes[i].operands);
      int from = own->source < 0 || own->source >= kWarp ? i : own->source;
      // What a lane outside the mask would give is undefined.
      *own->result = w.mask >> from & 1 ? static_cast<const Exchange*>(lanes[from].operands)->value : ~uint64_t{0};
    }
  });
  std::memcpy(&value, &result, sizeof(T));
  return value;
}

inline int lane() { return machine.thread % kWarp; }

inline unsigned ballot(unsigned mask, const char* name, bool p) {
  uint64_t result = 0;
  const Exchange mine{p, 0, &result};
  warp_operation(mask, name, &mine, [](Warp& w, Fiber* lanes) {
    uint64_t bits = 0;
    for (int i = 0; i < kWarp; ++i) {
      if (w.mask >> i & 1) bits |= static_cast<const Exchange*>(lanes[i].operands)->value << i;
    }
    for (int i = 0; i < kWarp; ++i) {
      if (w.mask >> i & 1) *static_cast<const Exchange*>(lanes[i].operands)->result = bits;
    }
  });
  return static_cast<unsigned>(result);
}

}  // namespace simt

// `width` splits the warp into segments, as in CUDA.
template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32) {
  const int base = simt::lane() / width * width;
  return simt::shuffle(mask, "__shfl_sync", value, base + (source & (width - 1)));
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int bits, int width = 32) {
  const int source = simt::lane() ^ bits;
  return simt::shuffle(mask, "__shfl_xor_sync", value, source / width > simt::lane() / width ? -1 : source);
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32) {
  const int base = simt::lane() / width * width, source = simt::lane() - static_cast<int>(delta);
  return simt::shuffle(mask, "__shfl_up_sync", value, source < base ? -1 : source);
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32) {
  const int base = simt::lane() / width * width, source = simt::lane() + static_cast<int>(delta);
  return simt::shuffle(mask, "__shfl_down_sync", value, source >= base + width ? -1 : source);
}
inline unsigned __ballot_sync(unsigned mask, int p) { return simt::ballot(mask, "__ballot_sync", p != 0); }
inline int __any_sync(unsigned mask, int p) { return simt::ballot(mask, "__any_sync", p != 0) != 0; }
inline int __all_sync(unsigned mask, int p) { return simt::ballot(mask, "__all_sync", p == 0) == 0; }

// --- Atomics: one thread runs at a time -------------------------------------------------------------------
template <class T>
T atomicExch(T* p, T v) {
  const T old = *p;
  *p = v;
  return old;
}
template <class T>
T atomicAdd(T* p, T v) {
  const T old = *p;
  *p = old + v;
  return old;
}
template <class T>
T atomicMin(T* p, T v) {
  const T old = *p;
  *p = std::min(old, v);
  return old;
}
template <class T>
T atomicMax(T* p, T v) {
  const T old = *p;
  *p = std::max(old, v);
  return old;
}
template <class T>
T atomicOr(T* p, T v) {
  const T old = *p;
  *p = old | v;
  return old;
}
template <class T>
T atomicCAS(T* p, T expected, T v) {
  const T old = *p;
  if (old == expected) *p = v;
  return old;
}

// --- Bits and mathematics ---------------------------------------------------------------------------------
inline int __popc(unsigned v) { return __builtin_popcount(v); }
inline int __ffs(int v) { return __builtin_ffs(v); }
inline int __clz(int v) { return v == 0 ? 32 : __builtin_clz(static_cast<unsigned>(v)); }
template <class To, class From>
inline To simt_bits(From from) {
  To to;
  static_assert(sizeof to == sizeof from);
  std::memcpy(&to, &from, sizeof to);
  return to;
}
inline float __uint_as_float(unsigned v) { return simt_bits<float>(v); }
inline unsigned __float_as_uint(float v) { return simt_bits<unsigned>(v); }
inline float __int_as_float(int v) { return simt_bits<float>(v); }
inline int __float_as_int(float v) { return simt_bits<int>(v); }
inline float rsqrtf(float v) { return 1.0f / std::sqrt(v); }
inline float __expf(float v) { return std::exp(v); }
inline float __logf(float v) { return std::log(v); }
inline float __fdividef(float a, float b) { return a / b; }
inline float __frcp_rn(float v) { return 1.0f / v; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }

template <class T>
T __ldg(const T* p) {
  simt::check_aligned(p, alignof(T), "__ldg");
  return *p;
}
