// GroupNorm with an optional residual sum before it and an optional SiLU behind it, channels-last.
//
// An image is `pixels` rows of `channels` values; group g owns the neighbouring channels
// [g * channels / groups, (g + 1) * channels / groups).
//   summed = x + residual          (rounded to the dtype; the statistics are those of what is stored)
//   y      = (summed - mean) * rstd * weight + bias,   normed = silu ? y / (1 + exp(-y)) : y
// Memory is passed once for the statistics (the sum is made and written there) and once to normalise.
#pragma once

#include "dove/common.h"

namespace dove {

struct GroupNormArgs {
  const void* x;
  const void* residual;  // null: no sum
  const float* weight;   // [channels]
  const float* bias;     // [channels]
  void* normed;          // [batch, pixels, channels], dense
  void* summed;          // as normed; null without residual
  float* mean;           // [batch, groups], written
  float* rstd;           // [batch, groups], written: 1 / sqrt(variance + eps), variance over all of a group
  void* workspace;
  int64_t workspace_bytes;
  int64_t batch;
  int64_t pixels;
  int64_t channels;
  int64_t groups;
  int64_t x_stride_image;  // in elements; channels are dense
  int64_t x_stride_pixel;
  int64_t residual_stride_image;
  int64_t residual_stride_pixel;
  double eps;
  bool silu;
  DType dtype;
  int threads;
};

namespace cpu {
// Bytes of workspace that `group_norm` needs for these sizes and threads (pointers are not looked at).
int64_t group_norm_workspace(const GroupNormArgs& args);
// The result depends neither on the number of threads nor on the other images of the batch.
Status group_norm(const GroupNormArgs& args);
}  // namespace cpu

}  // namespace dove
