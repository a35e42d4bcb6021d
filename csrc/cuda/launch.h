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

// Starts `kernel` on `stream` (a cudaStream_t). A grid without blocks starts nothing.
template <class... P, class... A>
Status launch(void (*kernel)(P...), dim3 grid, dim3 block, size_t shared, void* stream, A... args) {
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return Status::kOk;
  if (shared > 48 * 1024 && cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                                 static_cast<int>(shared)) != cudaSuccess) {
    cudaGetLastError();  // reported here, not by a later call
    return Status::kLaunchFailed;
  }
  kernel<<<grid, block, shared, static_cast<cudaStream_t>(stream)>>>(args...);
  return cudaGetLastError() == cudaSuccess ? Status::kOk : Status::kLaunchFailed;
}

inline Status clear(void* target, size_t bytes, void* stream) {
  if (bytes == 0) return Status::kOk;
  const cudaError_t error = cudaMemsetAsync(target, 0, bytes, static_cast<cudaStream_t>(stream));
  return error == cudaSuccess ? Status::kOk : Status::kLaunchFailed;
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

#else

template <class... P, class... A>
Status launch(void (*kernel)(P...), dim3 grid, dim3 block, size_t shared, void*, A... args) {
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return Status::kOk;
  simt::run_grid({grid.x, grid.y, grid.z}, {block.x, block.y, block.z}, shared, [=] { kernel(args...); });
  return Status::kOk;
}

inline Status clear(void* target, size_t bytes, void*) {
  simt::with_guards([=] { std::memset(target, 0, bytes); });
  return Status::kOk;
}

inline int processors() { return 4; }
inline int shared_limit() { return 232448; }

#endif

}  // namespace dove::cuda
