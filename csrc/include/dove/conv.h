// 3x3 convolution, stride 1, zero padding 1, over channels-last images, with what surrounds it in a residual block:
//   a = x                                                            without normalisation
//   a = f((x - mean) * rstd * norm_weight + norm_bias), f = SiLU or identity   with it
//   y = conv(a, weight) + bias + residual
// The padding is zero in `a`, that is behind the normalisation. Arithmetic is float32 whatever the images are stored
// as.
//
// Winograd's minimal filtering F(4x4, 3x3): 4x4 outputs from 6x6 inputs with 36 products instead of 144, at the points
// 0, +-5/8, +-3/2 and infinity, where rounding errs half as much as at the customary 0, +-1, +-2 and infinity.
// (arXiv 1509.09308; on the choice of points arXiv 1803.10986.)
#pragma once

#include "dove/common.h"

namespace dove {

struct Conv3x3Args {
  const void* x;             // [batch, height, width, channels_in], channels dense
  const float* mean;         // [batch, groups]; null: no normalisation
  const float* rstd;         // [batch, groups]
  const float* norm_weight;  // [channels_in]
  const float* norm_bias;    // [channels_in]
  const float* packed;       // as conv3x3_pack leaves it
  const float* bias;         // [channels_out]
  const void* residual;      // [batch, height, width, channels_out], dense; null: none
  void* out;                 // as residual, dense
  void* workspace;
  int64_t workspace_bytes;
  int64_t batch;
  int64_t height;
  int64_t width;
  int64_t channels_in;  // both multiples of kConv3x3Channels
  int64_t channels_out;
  int64_t groups;
  int64_t x_stride_image;  // in elements
  int64_t x_stride_row;
  int64_t x_stride_pixel;
  bool silu;
  DType dtype;  // of x, residual and out
  int threads;
};

struct Conv3x3PackArgs {
  const float* weight;  // [channels_out, channels_in, 3, 3], dense
  float* packed;        // conv3x3_packed_values of them; the layout depends on the instruction set
  int64_t channels_in;
  int64_t channels_out;
  int threads;
};

constexpr int64_t kConv3x3Channels = 32;

namespace cpu {
int64_t conv3x3_packed_values(int64_t channels_in, int64_t channels_out);
Status conv3x3_pack(const Conv3x3PackArgs& args);
// Bytes of workspace for these sizes and threads (pointers are not looked at).
int64_t conv3x3_workspace(const Conv3x3Args& args);
// The result depends neither on the number of threads nor on the other images of the batch.
Status conv3x3(const Conv3x3Args& args);
}  // namespace cpu

}  // namespace dove
