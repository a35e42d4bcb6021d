// How launchers start kernels and clear memory. The same with nvcc and in the emulation of tests/simt.
#pragma once

#include "device.h"
#include "dove/common.h"

#ifdef __CUDACC__
#include <cuda_runtime.h>
#endif

namespace dove::cuda {

__host__ __device__ inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Shared memory that a block can have on every GPU from sm_80 on; sm_86 and sm_89 have the least.
constexpr size_t kSharedLimit = 99 * 1024;

#ifdef __CUDACC__

inline Status status_of(cudaError_t error) {
  if (error == cudaSuccess) return Status::kOk;
  cudaGetLastError();  // reported here, not by a later call
  return launch_failed(cudaGetErrorString(error));
}

// Lets `kernel` have so many bytes of dynamic shared memory.
template <class... P>
cudaError_t allow_shared(void (*kernel)(P...), size_t bytes) {
  if (bytes <= 48 * 1024) return cudaSuccess;
  return cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes));
}

// Starts `kernel` on `stream` (a cudaStream_t). A grid without blocks starts nothing.
template <class... P, class... A>
Status launch(void (*kernel)(P...), dim3 grid, dim3 block, size_t shared, void* stream, A... args) {
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return Status::kOk;
  if (const cudaError_t error = allow_shared(kernel, shared); error != cudaSuccess) return status_of(error);
  kernel<<<grid, block, shared, static_cast<cudaStream_t>(stream)>>>(args...);
  return status_of(cudaGetLastError());
}

inline Status clear(void* target, size_t bytes, void* stream) {
  if (bytes == 0) return Status::kOk;
  return status_of(cudaMemsetAsync(target, 0, bytes, static_cast<cudaStream_t>(stream)));
}

// Multiprocessors of the current device.
inline int processors() {
  int device = 0, count = 1;
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device);
  return count;
}

// Bytes of shared memory that a block of the current device may have.
inline int shared_limit() {
  int device = 0, bytes = 0;
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  return bytes;
}

// Blocks of `kernel` that the current device runs at once, on all multiprocessors together; at least one on each.
template <class... P>
int resident_blocks(void (*kernel)(P...), int threads, size_t shared) {
  int blocks = 0;
  if (allow_shared(kernel, shared) != cudaSuccess ||
      cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, kernel, threads, shared) != cudaSuccess) {
    cudaGetLastError();  // the launch will say it
  }
  return processors() * (blocks > 1 ? blocks : 1);
}

#else

template <class... P, class... A>
Status launch(void (*kernel)(P...), dim3 grid, dim3 block, size_t shared, void*, A... args) {
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return Status::kOk;
  const char* refusal = simt::refusal({grid.x, grid.y, grid.z}, {block.x, block.y, block.z}, shared);
  if (refusal != nullptr) return launch_failed(refusal);
  simt::run_grid({grid.x, grid.y, grid.z}, {block.x, block.y, block.z}, shared, [=] { kernel(args...); });
  return Status::kOk;
}

inline Status clear(void* target, size_t bytes, void*) {
  if (bytes == 0) return Status::kOk;
  if (const char* refusal = simt::refusal(); refusal != nullptr) return launch_failed(refusal);
  simt::with_guards([=] { std::memset(target, 0, bytes); });
  return Status::kOk;
}

inline int processors() { return 4; }
inline int shared_limit() { return 232448; }
template <class... P>
int resident_blocks(void (*)(P...), int, size_t) {
  return 2 * processors();
}

#endif

}  // namespace dove::cuda
