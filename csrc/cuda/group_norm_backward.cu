// Gradients of GroupNorm + SiLU: chunks and owners are those of group_norm.cu.
//
//   1. chunk_sums: per chunk and channel the sums of dy and of dy z, dy being the gradient taken through SiLU.
//   2. finish_sums: one warp an (image, group) sums the chunks in order, in double, and forms the group's means.
//   3. parameter_gradients: one thread a channel sums the images in order.
//   4. input_gradient: dx = rstd (dy w - mean(dy w) - z mean(dy w z)), plus what arrives at the sum itself. Where the
//      gradient of x_bias is wanted, its sums over the chunk too; then step 3 comes last.
//
//   bytes: grad and summed are read twice, grad_x is written once. All sums have a fixed order.
#include "dove/group_norm.h"
#include "group_norm_layout.h"
#include "vectors.h"

namespace dove::cuda {
namespace {

using Layout = GroupNormLayout;

// What a thread keeps of each of its channels.
template <class T, int packet>
struct Channels {
  float weight[packet], bias[packet], mean[packet], rstd[packet];

  __device__ Channels(const GroupNormGradArgs& a, int64_t image, int64_t channel) {
    const int64_t per_group = a.channels / a.groups;
    const bool wide = a.parameters == DType::kFloat32;
#pragma unroll
    for (int i = 0; i < packet; ++i) {
      const int64_t at = image * a.groups + (channel + i) / per_group;
      weight[i] = parameter<T>(a.weight, wide, channel + i);
      bias[i] = parameter<T>(a.bias, wide, channel + i);
      mean[i] = a.mean[at] - (a.x_bias != nullptr ? parameter<T>(a.x_bias, wide, channel + i) : 0);
      rstd[i] = a.rstd[at];
    }
  }
};

// dy from the gradient of silu(y): s (1 + y (1 - s)), s = 1 / (1 + exp(-y)).
template <class T, bool silu>
__device__ inline float through_silu(float grad, float y) {
  if (!silu) return grad;
  const float s = over_one_plus_exp<T>(1.0f, y);
  return grad * s * (1.0f + y * (1.0f - s));
}

template <class T>
struct Rows {
  const T* grad;
  const T* summed;
  const T* grad_summed;

  __device__ Rows(const GroupNormGradArgs& a, int64_t image, int64_t channel)
      : grad(static_cast<const T*>(a.grad) + image * a.grad_stride_image + channel),
        summed(static_cast<const T*>(a.summed) + image * a.summed_stride_image + channel),
        grad_summed(static_cast<const T*>(a.grad_summed) + image * a.grad_summed_stride_image + channel) {}
};

template <class T, int packet, bool silu>
__global__ void __launch_bounds__(Layout::kThreads) chunk_sums(GroupNormGradArgs a, Layout w) {
  float* sums = reinterpret_cast<float*>(dynamic_shared());  // [2, lanes, channels]
  const int64_t image = blockIdx.y, chunk = blockIdx.x;
  const int64_t first = chunk * w.chunk_pixels;
  const int64_t last = first + w.chunk_pixels < a.pixels ? first + w.chunk_pixels : a.pixels;
  const PixelOwner own(a.channels / packet, threadIdx.x);
  const int64_t half = own.lanes * a.channels;
  for (int v = own.first; own.active && v < own.packets; v += Layout::kThreads) {
    const int64_t channel = int64_t{v} * packet;
    const Channels<T, packet> c(a, image, channel);
    const Rows<T> rows(a, image, channel);
    float sum[packet], product[packet];
#pragma unroll
    for (int i = 0; i < packet; ++i) sum[i] = product[i] = 0;
#pragma unroll 2
    for (int64_t p = first + own.lane; p < last; p += own.lanes) {
      float x[packet], grad[packet];
      load<packet>(rows.summed + p * a.summed_stride_pixel, x);
      load<packet>(rows.grad + p * a.grad_stride_pixel, grad);
#pragma unroll
      for (int i = 0; i < packet; ++i) {
        const float z = (x[i] - c.mean[i]) * c.rstd[i];
        const float dy = through_silu<T, silu>(grad[i], z * c.weight[i] + c.bias[i]);
        sum[i] += dy;
        product[i] += dy * z;
      }
    }
#pragma unroll
    for (int i = 0; i < packet; ++i) {
      sums[own.lane * a.channels + channel + i] = sum[i];
      sums[half + own.lane * a.channels + channel + i] = product[i];
    }
  }
  __syncthreads();
  for (int64_t c = threadIdx.x; c < 2 * a.channels; c += Layout::kThreads) {
    const float* from = sums + (c < a.channels ? c : half + c - a.channels);
    float total = 0;
    for (int lane = 0; lane < own.lanes; ++lane) total += from[lane * a.channels];
    w.chunk_sums[(image * w.chunks + chunk) * 2 * a.channels + c] = total;
  }
}

template <class T>
__global__ void __launch_bounds__(32) finish_sums(GroupNormGradArgs a, Layout w) {
  const int64_t image = blockIdx.y, g = blockIdx.x;
  const int64_t per_group = a.channels / a.groups;
  const float* from = w.chunk_sums + image * w.chunks * 2 * a.channels;
  double group[2] = {0, 0};
  for (int64_t c = g * per_group; c < (g + 1) * per_group; ++c) {
    for (int kind = 0; kind < 2; ++kind) {
      const int64_t at = kind * a.channels + c;
      double total = 0;
      for (int64_t i = threadIdx.x; i < w.chunks; i += 32) total += from[i * 2 * a.channels + at];
      total = warp_sum(total);
      if (threadIdx.x == 0) w.image_sums[image * 2 * a.channels + at] = total;
      group[kind] += total * parameter<T>(a.weight, a.parameters == DType::kFloat32, c);
    }
  }
  if (threadIdx.x == 0) {
    const double count = static_cast<double>(a.pixels) * per_group;
    w.group_means[(image * 2 + 0) * a.groups + g] = static_cast<float>(group[0] / count);
    w.group_means[(image * 2 + 1) * a.groups + g] = static_cast<float>(group[1] / count);
  }
}

__global__ void __launch_bounds__(64) parameter_gradients(GroupNormGradArgs a, Layout w) {
  const int64_t c = int64_t{blockIdx.x} * 64 + threadIdx.x;
  if (c >= a.channels) return;
  double sum = 0, product = 0, of_x = 0;
  for (int64_t image = 0; image < a.batch; ++image) {
    sum += w.image_sums[image * 2 * a.channels + c];
    product += w.image_sums[(image * 2 + 1) * a.channels + c];
    if (a.grad_x_bias != nullptr) of_x += w.image_x_sums[image * w.x_row + c];
  }
  a.grad_bias[c] = static_cast<float>(sum);
  a.grad_weight[c] = static_cast<float>(product);
  if (a.grad_x_bias != nullptr) a.grad_x_bias[c] = static_cast<float>(of_x);
}

// Sums of the columns of [rows, columns] in double, by a whole block: a thread owns 4 columns and every lanes-th row.
// `columns` is a multiple of 4; `lanes` is [kThreads, 4] in shared memory.
__device__ void column_sums(const float* from, int64_t rows, int64_t columns, double* to, double* lanes) {
  const PixelOwner own(columns / 4, threadIdx.x);
  for (int v = own.first; own.active && v < own.packets; v += Layout::kThreads) {
    double sum[4] = {0, 0, 0, 0};
#pragma unroll 8
    for (int64_t r = own.lane; r < rows; r += own.lanes) {
      float value[4];
      load<4>(from + r * columns + v * 4, value);
#pragma unroll
      for (int i = 0; i < 4; ++i) sum[i] += value[i];
    }
    double* place = own.lanes > 1 ? lanes + (own.lane * own.packets + v) * 4 : to + v * 4;
#pragma unroll
    for (int i = 0; i < 4; ++i) place[i] = sum[i];
  }
  if (own.lanes == 1) return;
  __syncthreads();
  for (int64_t c = threadIdx.x; c < columns; c += Layout::kThreads) {
    double total = 0;
    for (int lane = 0; lane < own.lanes; ++lane) total += lanes[lane * columns + c];
    to[c] = total;
  }
}

__global__ void __launch_bounds__(Layout::kThreads) finish_x_sums(Layout w) {
  DOVE_SHARED(double, lanes, [Layout::kThreads * 4]);
  const int64_t image = blockIdx.x;
  column_sums(w.x_sums + image * w.chunks * w.x_row, w.chunks, w.x_row, w.image_x_sums + image * w.x_row, lanes);
}

// Two blocks a multiprocessor: left to itself, ptxas keeps the float32 variant to 64 registers and spills.
template <class T, int packet, bool silu>
__global__ void __launch_bounds__(Layout::kThreads, 2) input_gradient(GroupNormGradArgs a, Layout w) {
  float* sums = reinterpret_cast<float*>(dynamic_shared());  // [lanes, channels], where grad_x_bias is wanted
  const int64_t image = blockIdx.y;
  const int64_t first = int64_t{blockIdx.x} * w.chunk_pixels;
  const int64_t last = first + w.chunk_pixels < a.pixels ? first + w.chunk_pixels : a.pixels;
  const int64_t per_group = a.channels / a.groups;
  const PixelOwner own(a.channels / packet, threadIdx.x);
  for (int v = own.first; own.active && v < own.packets; v += Layout::kThreads) {
    const int64_t channel = int64_t{v} * packet;
    const Channels<T, packet> c(a, image, channel);
    const Rows<T> rows(a, image, channel);
    T* to = static_cast<T*>(a.grad_x) + image * a.pixels * a.channels + channel;
    float mean[packet], slope[packet], sum[packet];
#pragma unroll
    for (int i = 0; i < packet; ++i) {
      const int64_t g = (channel + i) / per_group;
      sum[i] = 0;
      mean[i] = w.group_means[(image * 2 + 0) * a.groups + g];
      slope[i] = w.group_means[(image * 2 + 1) * a.groups + g];
    }
#pragma unroll 2
    for (int64_t p = first + own.lane; p < last; p += own.lanes) {
      float x[packet], grad[packet], direct[packet];
      load<packet>(rows.summed + p * a.summed_stride_pixel, x);
      load<packet>(rows.grad + p * a.grad_stride_pixel, grad);
#pragma unroll
      for (int i = 0; i < packet; ++i) direct[i] = 0;
      if (a.grad_summed != nullptr) load<packet>(rows.grad_summed + p * a.grad_summed_stride_pixel, direct);
#pragma unroll
      for (int i = 0; i < packet; ++i) {
        const float z = (x[i] - c.mean[i]) * c.rstd[i];
        const float dz = through_silu<T, silu>(grad[i], z * c.weight[i] + c.bias[i]) * c.weight[i];
        direct[i] += c.rstd[i] * (dz - mean[i] - z * slope[i]);
        sum[i] += direct[i];
      }
      store<packet>(to + p * a.channels, direct);
    }
    if (a.grad_x_bias == nullptr) continue;
#pragma unroll
    for (int i = 0; i < packet; ++i) sums[own.lane * a.channels + channel + i] = sum[i];
  }
  if (a.grad_x_bias == nullptr) return;
  __syncthreads();
  for (int64_t c = threadIdx.x; c < w.x_row; c += Layout::kThreads) {
    float total = 0;
    for (int lane = 0; lane < own.lanes && c < a.channels; ++lane) total += sums[lane * a.channels + c];
    w.x_sums[(image * w.chunks + blockIdx.x) * w.x_row + c] = total;
  }
}

template <class T, int packet, bool silu>
Status run(const GroupNormGradArgs& a, void* stream) {
  const Layout w(a, a.workspace);
  const dim3 chunks(static_cast<unsigned>(w.chunks), static_cast<unsigned>(a.batch));
  const size_t shared = PixelOwner::lanes_of(a.channels / packet) * a.channels * sizeof(float);
  const bool sums = a.grad_x_bias != nullptr;
  Status status = launch(chunk_sums<T, packet, silu>, chunks, Layout::kThreads, 2 * shared, stream, a, w);
  if (status != Status::kOk) return status;
  status = launch(finish_sums<T>, dim3(static_cast<unsigned>(a.groups), chunks.y), 32, 0, stream, a, w);
  if (status != Status::kOk) return status;
  status = launch(input_gradient<T, packet, silu>, chunks, Layout::kThreads, sums ? shared : 0, stream, a, w);
  if (status != Status::kOk) return status;
  if (sums) status = launch(finish_x_sums, chunks.y, Layout::kThreads, 0, stream, w);
  if (status != Status::kOk) return status;
  return launch(parameter_gradients, dim3(static_cast<unsigned>((a.channels + 63) / 64)), 64, 0, stream, a, w);
}

template <class T>
Status run(const GroupNormGradArgs& a, void* stream) {
  const bool packets = a.channels % kPacket<T> == 0 &&
                       in_packets<T>(a.grad, a.grad_stride_image, a.grad_stride_pixel) &&
                       in_packets<T>(a.summed, a.summed_stride_image, a.summed_stride_pixel) &&
                       in_packets<T>(a.grad_summed, a.grad_summed_stride_image, a.grad_summed_stride_pixel) &&
                       in_packets<T>(a.grad_x, 0, 0);
  if (packets) return a.silu ? run<T, kPacket<T>, true>(a, stream) : run<T, kPacket<T>, false>(a, stream);
  return a.silu ? run<T, 1, true>(a, stream) : run<T, 1, false>(a, stream);
}

}  // namespace

int64_t group_norm_backward_workspace(const GroupNormGradArgs& a) { return Layout(a, nullptr).bytes; }

Status group_norm_backward(const GroupNormGradArgs& a, void* stream) {
  if (const Status status = check_group_norm(a); status != Status::kOk) return status;
  if (a.dtype == DType::kFloat32) return run<float>(a, stream);
  return a.dtype == DType::kBFloat16 ? run<BFloat16>(a, stream) : run<Float16>(a, stream);
}

}  // namespace dove::cuda
