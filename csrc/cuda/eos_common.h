// What the EOS kernels share beside the tile of logits.
#pragma once

#include "dove/eos.h"
#include "launch.h"

namespace dove::cuda {

// The start of a running maximum: finite, so that a logit of -inf adds exp(-inf) = 0 and not NaN.
constexpr float kLowest = -3.4028234663852886e38f;

// Row `position` of the flattened batch; Args has the fields of EosArgs.
template <class T, class Args>
__device__ inline const T* hidden_row(const Args& a, int64_t position) {
  return static_cast<const T*>(a.hidden) + position / a.positions * a.hidden_stride_image +
         position % a.positions * a.hidden_stride_position;
}

// Sums of 16-bit operands are made with the fast exponential.
template <class T>
__device__ inline float exponential(float v) {
  return sizeof(T) == 2 ? __expf(v) : expf(v);
}

}  // namespace dove::cuda
