// How group_norm and its backward cut an image into chunks, who owns which channels, and how the workspace is
// divided.
#pragma once

#include "dove/group_norm.h"
#include "launch.h"

namespace dove::cuda {

struct GroupNormLayout {
  static constexpr int kThreads = 256;
  // Values of a chunk: at least so many that a thread has several packets in flight, at most so many chunks an
  // image that merging them stays cheap.
  static constexpr int64_t kChunkValues = 8192;
  static constexpr int64_t kMaxChunks = 256;
  static constexpr int64_t kMaxChannels = 4096;

  int64_t chunk_pixels;
  int64_t chunks;         // per image
  double* chunk_mean;     // forward: [batch, chunks, groups]
  double* chunk_squares;  // forward: [batch, chunks, groups], squared deviations from the chunk's own mean
  float* center;          // forward: [batch, channels], the group's mean, less what is still to be added to x
  float* scale;           // forward: [batch, channels], weight * rstd
  float* shift;           // forward: [batch, channels], bias, less what `center` lost by rounding
  float* chunk_sums;      // backward: [batch, chunks, 2, channels], sums of dy and of dy z
  double* image_sums;     // backward: [batch, 2, channels], the same of an image
  float* group_means;     // backward: [batch, 2, groups], means of dz and of dz z
  int64_t x_row;          // backward: channels, rounded up to packets of 4
  float* x_sums;          // backward: [batch, chunks, x_row], sums of grad_x
  double* image_x_sums;   // backward: [batch, x_row], the same of an image
  int64_t bytes;

  // `Args`: those of either pass.
  template <class Args>
  GroupNormLayout(const Args& a, void* base) {
    const int64_t batch = a.batch, pixels = a.pixels, channels = a.channels, groups = a.groups;
    int64_t values = pixels * channels / kMaxChunks;
    if (values < kChunkValues) values = kChunkValues;
    chunk_pixels = (values + channels - 1) / channels;
    chunks = (pixels + chunk_pixels - 1) / chunk_pixels;
    bytes = 0;
    const auto take = [&](int64_t count, int64_t size) {
      void* here = static_cast<char*>(base) + bytes;
      bytes += (count * size + 63) / 64 * 64;
      return here;
    };
    const int64_t parts = batch * chunks * groups;
    chunk_mean = static_cast<double*>(take(parts, sizeof(double)));
    chunk_squares = static_cast<double*>(take(parts, sizeof(double)));
    center = static_cast<float*>(take(batch * channels, sizeof(float)));
    scale = static_cast<float*>(take(batch * channels, sizeof(float)));
    shift = static_cast<float*>(take(batch * channels, sizeof(float)));
    const int64_t forward_bytes = bytes;
    bytes = 0;  // the two passes never share a call
    chunk_sums = static_cast<float*>(take(batch * chunks * 2 * channels, sizeof(float)));
    image_sums = static_cast<double*>(take(batch * 2 * channels, sizeof(double)));
    group_means = static_cast<float*>(take(batch * 2 * groups, sizeof(float)));
    x_row = ceil_div(channels, 4) * 4;
    x_sums = static_cast<float*>(take(batch * chunks * x_row, sizeof(float)));
    image_x_sums = static_cast<double*>(take(batch * x_row, sizeof(double)));
    if (bytes < forward_bytes) bytes = forward_bytes;
  }
};

// Which packets of channels and which pixels of a chunk a thread owns: packet first + i kThreads, every lanes-th
// pixel from `lane` on.
struct PixelOwner {
  int packets;  // of a pixel
  int lanes;    // pixels side by side
  int lane;
  int first;
  bool active;

  __host__ __device__ static int lanes_of(int64_t packets) {
    return packets < GroupNormLayout::kThreads ? GroupNormLayout::kThreads / static_cast<int>(packets) : 1;
  }

  __device__ PixelOwner(int64_t packets_of_pixel, int thread)
      : packets(static_cast<int>(packets_of_pixel)), lanes(lanes_of(packets_of_pixel)) {
    lane = lanes > 1 ? thread / packets : 0;
    first = lanes > 1 ? thread % packets : thread;
    active = lane < lanes;
  }
};

template <class Args>
Status check_group_norm(const Args& a) {
  if (a.batch < 0 || a.batch > 65535 || a.pixels < 1 || a.channels < 1 || a.groups < 1 || a.channels % a.groups != 0 ||
      a.channels > GroupNormLayout::kMaxChannels) {
    return Status::kUnsupportedShape;
  }
  if (a.workspace_bytes < GroupNormLayout(a, nullptr).bytes) return Status::kWorkspaceTooSmall;
  const bool known = a.dtype == DType::kFloat32 || a.dtype == DType::kBFloat16 || a.dtype == DType::kFloat16;
  return known && (a.parameters == DType::kFloat32 || a.parameters == a.dtype) ? Status::kOk
                                                                               : Status::kUnsupportedDType;
}

}  // namespace dove::cuda
