// How the workspace of group_norm is divided. Sizes do not depend on the instruction set: rows of channels are
// padded to the widest vector.
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
  float* center;          // [batch, padded_channels]: the group's mean
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
      void* here = static_cast<char*>(base) + bytes;
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

}  // namespace
}  // namespace dove::cpu
