// What kernels may use of the device beside the CUDA language: 16-bit types, wide loads, asynchronous copies and
// tensor cores. Kernels hold no inline assembly of their own, so that the same sources also compile with g++
// against the emulation in tests/simt/device.h, which declares the same names.
#pragma once

#ifndef __CUDACC__
#include "simt/device.h"
#else

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

namespace dove::cuda {

using BFloat16 = __nv_bfloat16;
using Float16 = __half;

__device__ __forceinline__ float to_float(float v) { return v; }
__device__ __forceinline__ float to_float(BFloat16 v) { return __bfloat162float(v); }
__device__ __forceinline__ float to_float(Float16 v) { return __half2float(v); }

template <class T>
__device__ T from_float(float v);
template <>
__device__ __forceinline__ float from_float<float>(float v) {
  return v;
}
template <>
__device__ __forceinline__ BFloat16 from_float<BFloat16>(float v) {
  return __float2bfloat16_rn(v);
}
template <>
__device__ __forceinline__ Float16 from_float<Float16>(float v) {
  return __float2half_rn(v);
}

// Two values in one register, the first in its lower half.
template <class T>
__device__ uint32_t pack2(float low, float high);
template <>
__device__ __forceinline__ uint32_t pack2<BFloat16>(float low, float high) {
  uint32_t v;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(v) : "f"(high), "f"(low));
  return v;
}
template <>
__device__ __forceinline__ uint32_t pack2<Float16>(float low, float high) {
  uint32_t v;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(v) : "f"(high), "f"(low));
  return v;
}
template <class T>
__device__ float2 unpack2(uint32_t v);
template <>
__device__ __forceinline__ float2 unpack2<BFloat16>(uint32_t v) {
  return {__uint_as_float(v << 16), __uint_as_float(v & 0xffff0000u)};
}
template <>
__device__ __forceinline__ float2 unpack2<Float16>(uint32_t v) {
  __half2 h;
  memcpy(&h, &v, sizeof h);
  return __half22float2(h);
}

// 2^v to about 2 units in the last place; 0 for -infinity.
__device__ __forceinline__ float fast_exp2(float v) {
  float r;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(v));
  return r;
}

// The block's dynamic shared memory, aligned to 128 bytes.
__device__ __forceinline__ unsigned char* dynamic_shared() {
  extern __shared__ __align__(128) unsigned char dove_dynamic_shared[];
  return dove_dynamic_shared;
}

// A variable of the block, aligned to 16 bytes: DOVE_SHARED(float, partial, [8][33]); or DOVE_SHARED(int, total, );
#define DOVE_SHARED(type, name, dims) __shared__ __align__(16) type name dims

// One load or store of a whole vector type; the address is a multiple of its size.
template <class V>
__device__ __forceinline__ V load_as(const void* p) {
  return *static_cast<const V*>(p);
}
template <class V>
__device__ __forceinline__ void store_as(void* p, V v) {
  *static_cast<V*>(p) = v;
}

__device__ __forceinline__ uint32_t shared_address(const void* p) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}

// 16 bytes from global to shared memory past the registers; zeros when not `valid` (nothing is read then).
__device__ __forceinline__ void cp_async16(void* target, const void* source, bool valid) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
               :
               : "r"(shared_address(target)), "l"(source), "r"(valid ? 16 : 0)
               : "memory");
}
// The same of 4 bytes.
__device__ __forceinline__ void cp_async4(void* target, const void* source, bool valid) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;"
               :
               : "r"(shared_address(target)), "l"(source), "r"(valid ? 4 : 0)
               : "memory");
}
__device__ __forceinline__ void cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Waits until at most the `kNewest` newest groups of this thread are under way.
template <int kNewest>
__device__ __forceinline__ void cp_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kNewest) : "memory");
}

// Four 8 x 8 matrices of 16-bit values; lane l gives the address of row l % 8 of matrix l / 8 and receives of each
// matrix row l / 4, columns 2 * (l % 4) and the next.
__device__ __forceinline__ void ldmatrix_x4(uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row))
               : "memory");
}
// The same of the transposed matrices.
__device__ __forceinline__ void ldmatrix_x4_trans(uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row))
               : "memory");
}

// d += a * b on 16 x 16 times 16 x 8, summed in float32.
template <class T>
__device__ void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1);
template <>
__device__ __forceinline__ void mma_m16n8k16<BFloat16>(float (&d)[4], const uint32_t (&a)[4], uint32_t b0,
                                                       uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
template <>
__device__ __forceinline__ void mma_m16n8k16<Float16>(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// --- Counters that blocks share ------------------------------------------------------------------------------
// Adds 1 to a counter and returns what it held. What this thread wrote, or has seen of others behind a barrier, is
// visible to whoever meets the new value, as what was written before the arrivals so far is to this thread.
__device__ __forceinline__ int arrive(int* counter) {
  int before;
  asm volatile("atom.acq_rel.gpu.add.s32 %0, [%1], 1;" : "=r"(before) : "l"(counter) : "memory");
  return before;
}

// Waits until a counter holds at least `count`. Only for arrivals of blocks that have certainly begun and that do not
// wait themselves: how many blocks run at a time is not known.
__device__ __forceinline__ void wait_for(const int* counter, int count) {
  for (;;) {
    int now;
    asm volatile("ld.acquire.gpu.s32 %0, [%1];" : "=r"(now) : "l"(counter) : "memory");
    if (now >= count) return;
    __nanosleep(100);
  }
}

}  // namespace dove::cuda

#endif
