// The sum that ends a residual branch, channels-last: with the bias that its last convolution left out, and with the
// zeros that a convolution of stride 2 wants below and to the right of the image. CUDA only.
#pragma once

#include "dove/common.h"

namespace dove {

// out[b, i, j] = x[b, i, j] + residual[b, i, j] + bias for i < height and j < width, 0 for the `pad` rows and columns
// behind them. Arithmetic is float32, results are rounded once.
struct ResidualSumArgs {
  const void* x;
  const void* residual;  // null: none
  const void* bias;      // [channels], of `parameters`; null: none
  void* out;             // [batch, height + pad, width + pad, channels], dense
  int64_t batch;
  int64_t height;
  int64_t width;
  int64_t channels;
  int64_t pad;
  int64_t x_stride_image;  // in elements; channels are dense
  int64_t x_stride_row;
  int64_t x_stride_pixel;
  int64_t residual_stride_image;
  int64_t residual_stride_row;
  int64_t residual_stride_pixel;
  DType dtype;
  DType parameters;  // float32 or dtype
};

namespace cuda {
Status residual_sum(const ResidualSumArgs& args, void* stream);
}  // namespace cuda

}  // namespace dove
