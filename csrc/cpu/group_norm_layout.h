// How the workspaces of group_norm and its backward are divided. Sizes do not depend on the instruction set: rows of
// channels are padded to the widest vector.
#pragma once

#include "dove/group_norm.h"

namespace dove::cpu {
namespace {  // internal linkage: every translation unit, compiled for its own instruction set, keeps its own copy

struct GroupNormLayout {
  // Values of one chunk: the unit of work and of the statistics. Large enough that combining a chunk's
  // channels into groups is cheap beside reading it, small enough to stay in the second-level cache.
  static constexpr int64_t kChunkValues = 32768;
  static constexpr int64_t kPad = 16;

  int64_t padded_channels;
  int64_t chunk_pixels;
  int64_t chunks;         // per image
  double* chunk_mean;     // [batch, chunks, groups]
  double* chunk_squares;  // [batch, chunks, groups]: squared deviations from the chunk's own mean
  float* center;          // [batch, padded_channels]: the group's mean, less what is still to be added to x
  float* scale;           // [batch, padded_channels]: weight * rstd
  float* shift;           // [batch, padded_channels]: bias, less what `center` lost by rounding
  float* channel_sums;    // [threads, 3, padded_channels]
  int64_t bytes;

  GroupNormLayout(const GroupNormArgs& a, void* base) {
    padded_channels = (a.channels + kPad - 1) / kPad * kPad;
    chunk_pixels = a.channels < kChunkValues ? kChunkValues / a.channels : 1;
    chunks = (a.pixels + chunk_pixels - 1) / chunk_pixels;
    bytes = 0;
    const auto take = [&](int64_t count, int64_t size) {
      void* here = reinterpret_cast<void*>(reinterpret_cast<uintptr_t>(base) + static_cast<uintptr_t>(bytes));
      bytes += (count * size + 63) / 64 * 64;
      return here;
    };
    const int64_t parts = a.batch * chunks * a.groups;
    chunk_mean = static_cast<double*>(take(parts, sizeof(double)));
    chunk_squares = static_cast<double*>(take(parts, sizeof(double)));
    center = static_cast<float*>(take(a.batch * padded_channels, sizeof(float)));
    scale = static_cast<float*>(take(a.batch * padded_channels, sizeof(float)));
    shift = static_cast<float*>(take(a.batch * padded_channels, sizeof(float)));
    const int64_t threads = a.threads > 1 ? a.threads : 1;
    channel_sums = static_cast<float*>(take(threads * 3 * padded_channels, sizeof(float)));
  }
};

struct GroupNormBackwardLayout {
  static constexpr int64_t kChunkValues = 32768;
  // A chunk's sums are float32 and run over its pixels one after the other; chunks are added in double.
  static constexpr int64_t kMaxChunkPixels = 512;
  static constexpr int64_t kPad = 16;

  int64_t padded_channels;
  int64_t chunk_pixels;
  int64_t chunks;      // per image
  float* chunk_sums;   // [batch, chunks, 2, padded_channels]: of dy, and of dy (x - mean)
  double* image_sums;  // [batch, 2, padded_channels]: the gradients of bias and weight
  float* center;       // [batch, padded_channels]: the group's mean, less what is still to be added to x
  float* scale;        // [batch, padded_channels]: weight * rstd
  float* shift;        // [padded_channels]: bias
  float* along_x;      // [batch, padded_channels]: what grad_x takes of x - center
  float* constant;     // [batch, padded_channels]: what grad_x takes at every pixel
  float* x_sums;       // [batch, chunks, padded_channels]: of grad_x, where grad_x_bias is wanted
  int64_t bytes;

  GroupNormBackwardLayout(const GroupNormGradArgs& a, void* base) {
    padded_channels = (a.channels + kPad - 1) / kPad * kPad;
    chunk_pixels = a.channels < kChunkValues ? kChunkValues / a.channels : 1;
    if (chunk_pixels > kMaxChunkPixels) chunk_pixels = kMaxChunkPixels;
    chunks = (a.pixels + chunk_pixels - 1) / chunk_pixels;
    bytes = 0;
    const auto take = [&](int64_t count, int64_t size) {
      void* here = reinterpret_cast<void*>(reinterpret_cast<uintptr_t>(base) + static_cast<uintptr_t>(bytes));
      bytes += (count * size + 63) / 64 * 64;
      return here;
    };
    const auto rows = [&](int64_t count) { return static_cast<float*>(take(count * padded_channels, sizeof(float))); };
    image_sums = static_cast<double*>(take(a.batch * 2 * padded_channels, sizeof(double)));
    chunk_sums = rows(a.batch * chunks * 2);
    center = rows(a.batch);
    scale = rows(a.batch);
    along_x = rows(a.batch);
    constant = rows(a.batch);
    shift = rows(1);
    x_sums = rows(a.grad_x_bias == nullptr ? 0 : a.batch * chunks);
  }
};

}  // namespace
}  // namespace dove::cpu
