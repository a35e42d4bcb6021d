// Kernels that are right, and the same with one fault each: the emulation must tell them apart.
#include "selftest.h"

#include "launch.h"

namespace simt_selftest {

using namespace dove::cuda;

// Sums 128 values through shared memory, with or without the barrier.
template <bool kBarrier>
__global__ void sum(const float* in, float* out) {
  DOVE_SHARED(float, values, [128]);
  values[threadIdx.x] = in[threadIdx.x];
  if (kBarrier) __syncthreads();
  float total = 0;
  for (int i = 0; i < 128; ++i) total += values[(threadIdx.x + i) % 128];
  out[threadIdx.x] = total;
}

// Copies 128 floats by cp.async; waits for the groups but the newest `kNewest`.
template <int kNewest>
__global__ void copy(const float* in, float* out) {
  auto* buffer = reinterpret_cast<float*>(dynamic_shared());
  cp_async16(buffer + 4 * threadIdx.x, in + 4 * threadIdx.x, threadIdx.x != 31);
  cp_async_commit();
  cp_async_wait<kNewest>();
  __syncwarp();
  for (int i = 0; i < 4; ++i) out[threadIdx.x + 32 * i] = buffer[threadIdx.x + 32 * i];
}

// c[16][8] = a[16][16] b[16][8] on one warp, a and b through ldmatrix.
template <class T>
__global__ void multiply(const float* a, const float* b, float* c) {
  DOVE_SHARED(T, left, [16][16]);
  DOVE_SHARED(T, right, [16][16]);
  const int lane = threadIdx.x;
  for (int i = lane; i < 256; i += 32) left[i / 16][i % 16] = from_float<T>(a[i]);
  for (int i = lane; i < 256; i += 32) right[i / 16][i % 16] = from_float<T>(i % 16 < 8 ? b[i / 16 * 8 + i % 16] : 0.f);
  __syncwarp();
  uint32_t fa[4], fb[4];
  ldmatrix_x4(fa, &left[lane % 16][lane / 16 * 8]);
  ldmatrix_x4_trans(fb, &right[lane % 16][lane / 16 * 8]);
  float d[4] = {};
  mma_m16n8k16<T>(d, fa, fb[0], fb[1]);
  for (int i = 0; i < 4; ++i) c[(lane / 4 + i / 2 * 8) * 8 + lane % 4 * 2 + i % 2] = d[i];
}

__global__ void outside(const float* in, float* out, int from) {
  out[threadIdx.x] = in[static_cast<int>(threadIdx.x) + from];
}

__global__ void half_a_warp() {
  if (threadIdx.x < 16) return;
  __shfl_xor_sync(~0u, 1, 1);
}

__global__ void half_a_block() {
  if (threadIdx.x < 32) __syncthreads();
  if (threadIdx.x >= 32) __shfl_sync(~0u, 1, 0);
  if (threadIdx.x >= 64) __syncthreads();
}

__global__ void misaligned(const float* in, float* out) { out[0] = load_as<float4>(in + 1).x; }

// Prefix sum over a warp, ballot, atomics and a vote of the block.
__global__ void warp_functions(int* out) {
  int v = threadIdx.x % 32;
  for (int d = 1; d < 32; d *= 2) {
    const int other = __shfl_up_sync(~0u, v, d);
    if (threadIdx.x % 32 >= d) v += other;
  }
  atomicAdd(&out[0], v);
  const unsigned odd = __ballot_sync(~0u, threadIdx.x & 1);
  if (threadIdx.x == 40) out[1] = static_cast<int>(odd);
  if (threadIdx.x == 41) out[2] = v;
  const int count = __syncthreads_count(threadIdx.x < 50);
  if (threadIdx.x == 63) out[3] = count;
}

// Each block leaves a value and waits for those that began before it, or for all.
template <bool kAll>
__global__ void blocks_in_turn(int* out) {
  DOVE_SHARED(int, turn, );
  int *left = out + 1, *values = out + 32;
  if (threadIdx.x == 0) turn = atomicAdd(out, 1);
  __syncthreads();
  if (threadIdx.x == 63) values[turn] = turn;
  __syncthreads();
  if (threadIdx.x == 0) {
    arrive(left + turn);
    for (int i = 0; i < (kAll ? static_cast<int>(gridDim.x) : turn); ++i) wait_for(left + i, 1);
  }
  __syncthreads();
  int sum = 0;
  for (int i = 0; i < turn; ++i) sum += values[i];
  if (sum != turn * (turn - 1) / 2) values[turn] = -1;
}

void run(const std::string& what, float* a, float* b, float* c) {
  const auto start = [](auto kernel, unsigned threads, auto... args) {
    launch(kernel, dim3(1), dim3(threads), 512, nullptr, args...);
  };
  if (what == "sum")
    start(sum<true>, 128, a, c);
  else if (what == "sum_without_barrier")
    start(sum<false>, 128, a, c);
  else if (what == "copy")
    start(copy<0>, 32, a, c);
  else if (what == "copy_without_wait")
    start(copy<1>, 32, a, c);
  else if (what == "multiply_bf16")
    start(multiply<BFloat16>, 32, a, b, c);
  else if (what == "multiply_fp16")
    start(multiply<Float16>, 32, a, b, c);
  else if (what == "outside_behind")
    start(outside, 128, a, c, 256);
  else if (what == "outside_before")
    start(outside, 1, a, c, -4096);
  else if (what == "half_a_warp")
    start(half_a_warp, 32);
  else if (what == "half_a_block")
    start(half_a_block, 96);
  else if (what == "misaligned")
    start(misaligned, 1, a, c);
  else if (what == "warp_functions")
    start(warp_functions, 64, reinterpret_cast<int*>(c));
  else if (what == "blocks_in_turn")
    launch(blocks_in_turn<false>, dim3(8), dim3(64), 0, nullptr, reinterpret_cast<int*>(c));
  else if (what == "blocks_that_wait_for_ever")
    launch(blocks_in_turn<true>, dim3(8), dim3(64), 0, nullptr, reinterpret_cast<int*>(c));
  else
    throw simt::Fault("no such self test: " + what);
}

template <class To, class From>
void convert_all(const void* from, void* to, size_t count) {
  for (size_t i = 0; i < count; ++i) {
    static_cast<To*>(to)[i] = from_float<To>(to_float(static_cast<const From*>(from)[i]));
  }
}

void convert(int kind, const void* from, void* to, size_t count) {
  if (kind == 1) convert_all<BFloat16, float>(from, to, count);
  if (kind == 2) convert_all<Float16, float>(from, to, count);
  if (kind == -1) convert_all<float, BFloat16>(from, to, count);
  if (kind == -2) convert_all<float, Float16>(from, to, count);
}

}  // namespace simt_selftest
