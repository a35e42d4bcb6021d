// Neighbouring values of a row as floats, and sums over a warp in a fixed order: what the element-wise kernels share.
#pragma once

#include "launch.h"

namespace dove::cuda {

// `count` neighbouring values; a load or store of one is a single instruction of up to 16 bytes.
template <class T, int count>
struct alignas(sizeof(T) * count) Packet {
  T at[count];
};

template <class T>
constexpr int kPacket = 16 / static_cast<int>(sizeof(T));

template <int count, class T>
__device__ inline void load(const T* from, float (&values)[count]) {
  const Packet<T, count> packet = load_as<Packet<T, count>>(from);
#pragma unroll
  for (int i = 0; i < count; ++i) values[i] = to_float(packet.at[i]);
}

template <int count, class T>
__device__ inline void store(T* to, const float (&values)[count]) {
  Packet<T, count> packet;
#pragma unroll
  for (int i = 0; i < count; ++i) packet.at[i] = from_float<T>(values[i]);
  store_as<Packet<T, count>>(to, packet);
}

// Whether rows that begin at `base` and lie `strides` elements apart may be read in packets.
template <class T>
bool in_packets(const void* base, int64_t stride_a, int64_t stride_b) {
  const int64_t bytes = static_cast<int64_t>(sizeof(T)) * kPacket<T>;
  return reinterpret_cast<uintptr_t>(base) % bytes == 0 && stride_a % kPacket<T> == 0 && stride_b % kPacket<T> == 0;
}

// The sum over a warp, the same in every lane.
template <class T>
__device__ inline T warp_sum(T value) {
#pragma unroll
  for (int apart = 16; apart > 0; apart /= 2) value += __shfl_xor_sync(0xffffffffu, value, apart);
  return value;
}

// Value i of a parameter, which is float32 (`wide`) or T.
template <class T>
__device__ inline float parameter(const void* base, bool wide, int64_t i) {
  return wide ? static_cast<const float*>(base)[i] : to_float(static_cast<const T*>(base)[i]);
}

// a / (1 + exp(-b)). Results that are rounded to 16 bits are made with the fast exponential and division.
template <class T>
__device__ inline float over_one_plus_exp(float a, float b) {
  if (sizeof(T) == 2) return __fdividef(a, 1.0f + __expf(-b));
  return a / (1.0f + expf(-b));
}

}  // namespace dove::cuda
