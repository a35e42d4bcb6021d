// The sum that ends a residual branch; see dove/residual_sum.h for what it computes.
//
// A row of blocks owns a row of the padded image, a thread one packet of channels of it:
//
//     out row i < height   | x + residual + bias, packet by packet | 0 |        height and width are even, so with a
//     pad out row height       | 0                                     | 0 |        of 1 each row ends in one pixel of
//     zeros
//
//   bytes, for P pixels of C channels of e bytes and (h + pad)(w + pad) = P' of them padded: (2 P + P') C e.
#include "dove/residual_sum.h"

#include "vectors.h"

namespace dove::cuda {
namespace {

constexpr int kThreads = 256;

template <class T, int packet>
__global__ void __launch_bounds__(kThreads) sum_rows(ResidualSumArgs a) {
  const int packets = static_cast<int>(a.channels / packet);  // of a pixel
  const int64_t height = a.height + a.pad, width = a.width + a.pad;
  const int at = static_cast<int>(blockIdx.y) * kThreads + static_cast<int>(threadIdx.x);
  if (at >= width * packets) return;
  const int64_t image = blockIdx.x / height, i = blockIdx.x % height, j = at / packets;
  const int64_t channel = int64_t{at % packets} * packet;
  float value[packet];
#pragma unroll
  for (int k = 0; k < packet; ++k) value[k] = 0;
  if (i < a.height && j < a.width) {
    const T* x = static_cast<const T*>(a.x) + image * a.x_stride_image + i * a.x_stride_row + j * a.x_stride_pixel;
    load<packet>(x + channel, value);
    if (a.residual != nullptr) {
      const T* residual = static_cast<const T*>(a.residual) + image * a.residual_stride_image +
                          i * a.residual_stride_row + j * a.residual_stride_pixel;
      float other[packet];
      load<packet>(residual + channel, other);
#pragma unroll
      for (int k = 0; k < packet; ++k) value[k] += other[k];
    }
    if (a.bias != nullptr) {
#pragma unroll
      for (int k = 0; k < packet; ++k) value[k] += parameter<T>(a.bias, a.parameters == DType::kFloat32, channel + k);
    }
  }
  store<packet>(static_cast<T*>(a.out) + (int64_t{blockIdx.x} * width + j) * a.channels + channel, value);
}

template <class T, int packet>
Status run(const ResidualSumArgs& a, void* stream) {
  const int64_t rows = a.batch * (a.height + a.pad);
  const int64_t parts = ceil_div((a.width + a.pad) * (a.channels / packet), kThreads);
  if (rows > INT32_MAX || parts > 65535) return Status::kUnsupportedShape;
  const dim3 grid(static_cast<unsigned>(rows), static_cast<unsigned>(parts));
  return launch(sum_rows<T, packet>, grid, kThreads, 0, stream, a);
}

template <class T>
Status run(const ResidualSumArgs& a, void* stream) {
  const bool packets = a.channels % kPacket<T> == 0 && in_packets<T>(a.x, a.x_stride_image, a.x_stride_pixel) &&
                       in_packets<T>(a.residual, a.residual_stride_image, a.residual_stride_pixel) &&
                       in_packets<T>(a.out, a.x_stride_row, a.residual_stride_row);
  return packets ? run<T, kPacket<T>>(a, stream) : run<T, 1>(a, stream);
}

}  // namespace

Status residual_sum(const ResidualSumArgs& a, void* stream) {
  if (a.parameters != DType::kFloat32 && a.parameters != a.dtype) return Status::kUnsupportedDType;
  if (a.batch < 0 || a.height < 0 || a.width < 0 || a.channels < 1 || a.pad < 0) return Status::kUnsupportedShape;
  if (a.dtype == DType::kFloat32) return run<float>(a, stream);
  if (a.dtype == DType::kBFloat16) return run<BFloat16>(a, stream);
  if (a.dtype == DType::kFloat16) return run<Float16>(a, stream);
  return Status::kUnsupportedDType;
}

}  // namespace dove::cuda
