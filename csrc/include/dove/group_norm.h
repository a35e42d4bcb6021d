// GroupNorm with an optional bias and residual sum before it and an optional SiLU behind it, channels-last.
//
// An image is `pixels` rows of `channels` values; group g owns the neighbouring channels
// [g * channels / groups, (g + 1) * channels / groups).
//   summed = x + residual + x_bias
//   y      = (summed - mean) * rstd * weight + bias,   normed = silu ? y / (1 + exp(-y)) : y
// With a residual the sum is rounded to the dtype and stored, and the statistics are those of what is stored; without
// one it is neither rounded nor stored.
// Memory is passed once for the statistics (the sum is made and written there) and once to normalise.
//
// Backward, with z = (summed - mean) * rstd, n pixels * channels / groups values a group, and sums over a group:
//   dy = grad * (silu ? silu'(y) : 1)
//   grad_bias = sum over images and pixels of dy,   grad_weight = the same of dy * z
//   grad_x = rstd * (dy * weight - sum(dy * weight) / n - z * sum(dy * weight * z) / n) + grad_summed
// which is the gradient of x as well as of the residual, and grad_x_bias = sum over images and pixels of grad_x. y is
// computed anew in both passes over memory: one for the sums, one for grad_x.
#pragma once

#include "dove/common.h"

namespace dove {

struct GroupNormArgs {
  const void* x;
  const void* residual;  // null: no sum
  const void* x_bias;    // [channels], of `parameters`, such as the bias of the convolution that made x; null: none
  const void* weight;    // [channels], of `parameters`
  const void* bias;      // [channels], of `parameters`
  void* normed;          // [batch, pixels, channels], dense; null (CPU only): only the statistics are wanted
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
  DType parameters;  // float32 (the CPU takes no other) or dtype
};

struct GroupNormGradArgs {
  const void* grad;         // of normed
  const void* summed;       // as the forward pass stored it; x, where there was no residual
  const void* grad_summed;  // null: none
  const void* x_bias;       // [channels], of `parameters`; null: none, or `summed` holds it
  const void* weight;       // [channels], of `parameters`
  const void* bias;         // [channels], of `parameters`
  const float* mean;        // [batch, groups], as the forward pass wrote them
  const float* rstd;
  void* grad_x;        // [batch, pixels, channels], dense
  float* grad_weight;  // [channels], written
  float* grad_bias;    // [channels], written
  float* grad_x_bias;  // [channels], written; null: not wanted
  void* workspace;
  int64_t workspace_bytes;
  int64_t batch;
  int64_t pixels;
  int64_t channels;
  int64_t groups;
  int64_t grad_stride_image;  // in elements; channels are dense
  int64_t grad_stride_pixel;
  int64_t summed_stride_image;
  int64_t summed_stride_pixel;
  int64_t grad_summed_stride_image;
  int64_t grad_summed_stride_pixel;
  bool silu;
  DType dtype;  // of grad, summed, grad_summed and grad_x
  int threads;
  DType parameters;  // float32 (the CPU takes no other) or dtype
};

namespace cpu {
// Bytes of workspace that `group_norm` needs for these sizes and threads (pointers are not looked at).
int64_t group_norm_workspace(const GroupNormArgs& args);
// The result depends neither on the number of threads nor on the other images of the batch.
Status group_norm(const GroupNormArgs& args);
// Likewise for the backward; the gradients of weight, bias and x_bias are summed image by image, in order. Whether
// grad_x_bias is null counts for the workspace.
int64_t group_norm_backward_workspace(const GroupNormGradArgs& args);
Status group_norm_backward(const GroupNormGradArgs& args);
}  // namespace cpu

namespace cuda {
// The result does not depend on the other images of the batch, and is the same at every run. At most 4096 channels.
int64_t group_norm_workspace(const GroupNormArgs& args);
Status group_norm(const GroupNormArgs& args, void* stream);
int64_t group_norm_backward_workspace(const GroupNormGradArgs& args);
Status group_norm_backward(const GroupNormGradArgs& args, void* stream);
}  // namespace cuda

}  // namespace dove
