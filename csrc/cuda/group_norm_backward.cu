// Gradients of GroupNorm + SiLU: chunks, their order and owners are those of group_norm.cu.
//
//   1. chunk_sums: per chunk and channel the sums of dy and of dy z, dy being the gradient taken through SiLU.
//   2. finish_sums: the block that is the last of its image sums the chunks in order, in double, and forms the groups'
//      means.
//   3. input_gradient: dx = rstd (dy w - mean(dy w) - z mean(dy w z)), plus what arrives at the sum itself. Where the
//      gradient of x_bias is wanted, the sums of dx over the chunk too, which the image's last block sums as in 2.
//   4. parameter_gradients, a launch of its own: one thread a channel sums the images in order.
//
//   bytes of device memory: grad and summed are read and grad_x is written once, where the L2 cache serves the second
//   read; twice of images larger than it. All sums have a fixed order.
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

// The chunk's sums of what each lane has summed: [lanes, channels] to [row], whose rest is 0.
__device__ inline void sum_lanes(const float* lanes, int count, int64_t channels, int64_t row, float* to) {
  for (int64_t c = threadIdx.x; c < row; c += Layout::kThreads) {
    float total = 0;
    for (int lane = 0; lane < count && c < channels; ++lane) total += lanes[lane * channels + c];
    to[c] = total;
  }
}

template <class T, int packet, bool silu>
__device__ void chunk_sums(const GroupNormGradArgs& a, const Layout& w, int64_t image, int64_t chunk) {
  float* sums = reinterpret_cast<float*>(dynamic_shared());  // [2, lanes, channels]
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
  for (int kind = 0; kind < 2; ++kind) {
    sum_lanes(sums + kind * half, own.lanes, a.channels, w.row,
              w.chunk_sums + ((image * w.chunks + chunk) * 2 + kind) * w.row);
  }
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

// An image's share of the gradients of weight and bias, and the means of its groups.
template <class T>
__device__ void finish_sums(const GroupNormGradArgs& a, const Layout& w, int64_t image) {
  double* sums = w.image_sums + image * 2 * w.row;
  column_sums(w.chunk_sums + image * w.chunks * 2 * w.row, w.chunks, 2 * w.row, sums,
              reinterpret_cast<double*>(dynamic_shared()));
  __syncthreads();
  const int64_t per_group = a.channels / a.groups;
  const double count = static_cast<double>(a.pixels) * per_group;
  for (int64_t i = threadIdx.x; i < 2 * a.groups; i += Layout::kThreads) {
    const int64_t kind = i / a.groups, g = i % a.groups;
    double total = 0;
    for (int64_t c = g * per_group; c < (g + 1) * per_group; ++c) {
      total += sums[kind * w.row + c] * parameter<T>(a.weight, a.parameters == DType::kFloat32, c);
    }
    w.group_means[image * 2 * a.groups + i] = static_cast<float>(total / count);
  }
}

template <class T, int packet, bool silu>
__device__ void input_gradient(const GroupNormGradArgs& a, const Layout& w, int64_t image, int64_t chunk) {
  float* sums = reinterpret_cast<float*>(dynamic_shared());  // [lanes, channels], where grad_x_bias is wanted
  const int64_t first = chunk * w.chunk_pixels;
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
  sum_lanes(sums, own.lanes, a.channels, w.row, w.chunk_x_sums + (image * w.chunks + chunk) * w.row);
}

// Two blocks a multiprocessor: left to itself, ptxas keeps the float32 variant to 64 registers and spills.
template <class T, int packet, bool silu>
__global__ void __launch_bounds__(Layout::kThreads, 2) gradients_of_chunks(GroupNormGradArgs a, Layout w) {
  const GroupNormTask task(w, a.batch);
  const int64_t image = task.image;
  if (!task.second) {
    chunk_sums<T, packet, silu>(a, w, image, task.chunk);
    if (!last_to_arrive(w.arrived + image, w.chunks)) return;
    finish_sums<T>(a, w, image);
    end_first_pass(w, image);
    return;
  }
  wait_for_first_pass(w, image);
  input_gradient<T, packet, silu>(a, w, image, task.chunk);
  if (a.grad_x_bias == nullptr || !last_to_arrive(w.arrived_last + image, w.chunks)) return;
  column_sums(w.chunk_x_sums + image * w.chunks * w.row, w.chunks, w.row, w.image_x_sums + image * w.row,
              reinterpret_cast<double*>(dynamic_shared()));
}

__global__ void __launch_bounds__(64) parameter_gradients(GroupNormGradArgs a, Layout w) {
  const int64_t c = int64_t{blockIdx.x} * 64 + threadIdx.x;
  if (c >= a.channels) return;
  double sum = 0, product = 0, of_x = 0;
  for (int64_t image = 0; image < a.batch; ++image) {
    sum += w.image_sums[image * 2 * w.row + c];
    product += w.image_sums[(image * 2 + 1) * w.row + c];
    if (a.grad_x_bias != nullptr) of_x += w.image_x_sums[image * w.row + c];
  }
  a.grad_bias[c] = static_cast<float>(sum);
  a.grad_weight[c] = static_cast<float>(product);
  if (a.grad_x_bias != nullptr) a.grad_x_bias[c] = static_cast<float>(of_x);
}

template <class T, int packet, bool silu>
Status run(const GroupNormGradArgs& a, void* stream) {
  Layout w(a, a.workspace);
  w.run_ahead(a.batch, a.channels);
  const auto blocks = static_cast<unsigned>(GroupNormTask::count(w, a.batch));
  const size_t lanes = PixelOwner::lanes_of(a.channels / packet) * a.channels * 2 * sizeof(float);
  constexpr size_t columns = Layout::kThreads * 4 * sizeof(double);  // of column_sums
  Status status = clear(w.tickets, w.counter_bytes, stream);
  if (status != Status::kOk) return status;
  status = launch(gradients_of_chunks<T, packet, silu>, blocks, Layout::kThreads, lanes < columns ? columns : lanes,
                  stream, a, w);
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
