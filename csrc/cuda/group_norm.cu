// GroupNorm + SiLU (+ bias and residual sum) over channels-last images, forward.
//
// An image is cut into chunks of whole pixels, whose size follows from the image alone; a block owns one chunk. A
// thread owns one packet of channels (16 bytes where alignment allows) and every lanes-th pixel of the chunk:
//
//                channels ->
//      pixel 0   t0  t1  t2 .. t15     lane 0        one warp reads 512 neighbouring bytes;
//      pixel 1   t16 t17 ..            lane 1        a thread keeps its channels, so scale and
//      pixel 2   t32 ..                lane 2        shift stay in registers
//
//   1. statistics: make and store the sum if there is a residual; each thread takes sums about its own first value,
//      so that a mean far larger than the deviation does no harm; a warp merges the threads of a group.
//   2. merge: the block that is the last of its image merges the chunks in order, in double, and prepares what the
//      next pass multiplies and adds.
//   3. normalise.
//
//   All of it is one launch, in which step 3 follows step 1 at so small a distance (GroupNormTask) that the L2 cache
//   still holds what it reads. Without a residual the bias of x is nowhere added: it moves a channel's mean by as much.
//
//   bytes of device memory: one read and one write of the image (with a residual two reads, two writes), where the
//   cache serves the second read. All sums have a fixed order.
#include "dove/group_norm.h"

#include "group_norm_layout.h"
#include "vectors.h"

namespace dove::cuda {
namespace {

using Layout = GroupNormLayout;

// Mean and squared deviations of what a thread saw of one channel.
struct Moments {
  float mean;
  float squares;
};

template <class T, int packet>
__device__ void statistics(const GroupNormArgs& a, const Layout& w, int64_t image, int64_t chunk) {
  Moments* moments = reinterpret_cast<Moments*>(dynamic_shared());  // [lanes, channels]
  const int64_t first = chunk * w.chunk_pixels;
  const int pixels = static_cast<int>(a.pixels - first < w.chunk_pixels ? a.pixels - first : w.chunk_pixels);
  const PixelOwner own(a.channels / packet, threadIdx.x);
  for (int v = own.first; own.active && v < own.packets; v += Layout::kThreads) {
    const int64_t channel = int64_t{v} * packet;
    const T* x = static_cast<const T*>(a.x) + image * a.x_stride_image + channel;
    const T* residual = static_cast<const T*>(a.residual) + image * a.residual_stride_image + channel;
    T* summed = static_cast<T*>(a.summed) + image * a.pixels * a.channels + channel;
    float bias[packet], center[packet], sum[packet], squares[packet];
    int count = 0;
#pragma unroll
    for (int i = 0; i < packet; ++i) {
      bias[i] = a.x_bias != nullptr ? parameter<T>(a.x_bias, a.parameters == DType::kFloat32, channel + i) : 0;
      center[i] = sum[i] = squares[i] = 0;
    }
#pragma unroll 4
    for (int p = own.lane; p < pixels; p += own.lanes) {
      float value[packet];
      load<packet>(x + (first + p) * a.x_stride_pixel, value);
      if (a.residual != nullptr) {
        float other[packet];
        load<packet>(residual + (first + p) * a.residual_stride_pixel, other);
#pragma unroll
        for (int i = 0; i < packet; ++i) value[i] = to_float(from_float<T>(value[i] + other[i] + bias[i]));
        store<packet>(summed + (first + p) * a.channels, value);
      }
#pragma unroll
      for (int i = 0; i < packet; ++i) {
        if (count == 0) center[i] = value[i];
        const float apart = value[i] - center[i];
        sum[i] += apart;
        squares[i] += apart * apart;
      }
      ++count;
    }
    const float share = count > 0 ? 1.0f / count : 0.0f;
#pragma unroll
    for (int i = 0; i < packet; ++i) {
      const float own_mean = center[i] + sum[i] * share;
      moments[own.lane * a.channels + channel + i] = {a.residual != nullptr ? own_mean : own_mean + bias[i],
                                                      squares[i] - sum[i] * sum[i] * share};
    }
  }
  __syncthreads();

  const int per_group = static_cast<int>(a.channels / a.groups);
  const int entries = own.lanes * per_group;
  for (int64_t g = threadIdx.x / 32; g < a.groups; g += Layout::kThreads / 32) {
    // Entry e is channel e % per_group as lane e / per_group saw it: it stands for `seen` pixels.
    const auto entry = [&](int e) { return moments[e / per_group * a.channels + g * per_group + e % per_group]; };
    const auto seen = [&](int e) { return (pixels - e / per_group + own.lanes - 1) / own.lanes; };
    const float center = moments[g * per_group].mean;
    float total = 0;
    for (int e = threadIdx.x % 32; e < entries; e += 32) total += seen(e) * (entry(e).mean - center);
    const float mean = warp_sum(total) / (static_cast<float>(pixels) * per_group);
    float deviations = 0;
    for (int e = threadIdx.x % 32; e < entries; e += 32) {
      const float apart = entry(e).mean - center - mean;
      deviations += entry(e).squares + seen(e) * apart * apart;
    }
    deviations = warp_sum(deviations);
    if (threadIdx.x % 32 == 0) {
      const int64_t at = (image * a.groups + g) * w.chunks + chunk;
      w.chunk_mean[at] = double{center} + mean;
      w.chunk_squares[at] = deviations;
    }
  }
}

// A warp merges the chunks of one group.
template <class T>
__device__ void merge(const GroupNormArgs& a, const Layout& w, int64_t image, int64_t g) {
  const int lane = threadIdx.x % 32;
  const int64_t per_group = a.channels / a.groups;
  const double* means = w.chunk_mean + (image * a.groups + g) * w.chunks;
  const double* squares = w.chunk_squares + (image * a.groups + g) * w.chunks;
  const auto pixels_in = [&](int64_t chunk) {
    const int64_t left = a.pixels - chunk * w.chunk_pixels;
    return static_cast<double>(left < w.chunk_pixels ? left : w.chunk_pixels);
  };
  double total = 0;
  for (int64_t i = lane; i < w.chunks; i += 32) total += means[i] * pixels_in(i);
  const double mean = warp_sum(total) / static_cast<double>(a.pixels);
  double deviations = 0;
  for (int64_t i = lane; i < w.chunks; i += 32) {
    const double apart = means[i] - mean;
    deviations += squares[i] + pixels_in(i) * per_group * apart * apart;
  }
  deviations = warp_sum(deviations);
  const double variance = deviations < 0 ? 0 : deviations / (static_cast<double>(a.pixels) * per_group);
  const double rstd = 1 / sqrt(variance + a.eps);
  if (lane == 0) {
    a.mean[image * a.groups + g] = static_cast<float>(mean);
    a.rstd[image * a.groups + g] = static_cast<float>(rstd);
  }
  for (int64_t c = g * per_group + lane; c < (g + 1) * per_group; c += 32) {
    const int64_t at = image * a.channels + c;
    const bool wide = a.parameters == DType::kFloat32, pending = a.x_bias != nullptr && a.residual == nullptr;
    const double of_x = pending ? mean - parameter<T>(a.x_bias, wide, c) : mean;  // the mean, as x has it without bias
    const float center = static_cast<float>(of_x);
    const float weight = parameter<T>(a.weight, wide, c);
    w.center[at] = center;
    w.scale[at] = static_cast<float>(weight * rstd);
    w.shift[at] = static_cast<float>(parameter<T>(a.bias, wide, c) - (of_x - center) * rstd * weight);
  }
}

template <class T, int packet, bool silu>
__device__ void normalise(const GroupNormArgs& a, const Layout& w, int64_t image, int64_t chunk) {
  const int64_t first = chunk * w.chunk_pixels;
  const int64_t last = first + w.chunk_pixels < a.pixels ? first + w.chunk_pixels : a.pixels;
  const PixelOwner own(a.channels / packet, threadIdx.x);
  for (int v = own.first; own.active && v < own.packets; v += Layout::kThreads) {
    const int64_t channel = int64_t{v} * packet;
    const int64_t stride = a.residual != nullptr ? a.channels : a.x_stride_pixel;
    const T* from = a.residual != nullptr ? static_cast<const T*>(a.summed) + image * a.pixels * a.channels + channel
                                          : static_cast<const T*>(a.x) + image * a.x_stride_image + channel;
    T* to = static_cast<T*>(a.normed) + image * a.pixels * a.channels + channel;
    float center[packet], scale[packet], shift[packet];
#pragma unroll
    for (int i = 0; i < packet; ++i) {
      center[i] = w.center[image * a.channels + channel + i];
      scale[i] = w.scale[image * a.channels + channel + i];
      shift[i] = w.shift[image * a.channels + channel + i];
    }
#pragma unroll 4
    for (int64_t p = first + own.lane; p < last; p += own.lanes) {
      float value[packet];
      load<packet>(from + p * stride, value);
#pragma unroll
      for (int i = 0; i < packet; ++i) {
        const float y = (value[i] - center[i]) * scale[i] + shift[i];
        value[i] = silu ? over_one_plus_exp<T>(y, y) : y;
      }
      store<packet>(to + p * a.channels, value);
    }
  }
}

// Three blocks a multiprocessor: left to itself, ptxas keeps some variants to 64 registers and spills.
template <class T, int packet, bool silu>
__global__ void __launch_bounds__(Layout::kThreads, Layout::kResident) norm_chunks(GroupNormArgs a, Layout w) {
  const GroupNormTask task(w, a.batch);
  if (task.second) {
    wait_for_first_pass(w, task.image);
    normalise<T, packet, silu>(a, w, task.image, task.chunk);
    return;
  }
  statistics<T, packet>(a, w, task.image, task.chunk);
  if (!last_to_arrive(w.arrived + task.image, w.chunks)) return;
  for (int64_t g = threadIdx.x / 32; g < a.groups; g += Layout::kThreads / 32) merge<T>(a, w, task.image, g);
  end_first_pass(w, task.image);
}

template <class T, int packet>
Status run(const GroupNormArgs& a, void* stream) {
  Layout w(a, a.workspace);
  w.run_ahead(a.batch, a.channels);
  const auto blocks = static_cast<unsigned>(GroupNormTask::count(w, a.batch));
  const size_t shared = PixelOwner::lanes_of(a.channels / packet) * a.channels * sizeof(Moments);
  if (const Status status = clear(w.tickets, w.counter_bytes, stream); status != Status::kOk) return status;
  return a.silu ? launch(norm_chunks<T, packet, true>, blocks, Layout::kThreads, shared, stream, a, w)
                : launch(norm_chunks<T, packet, false>, blocks, Layout::kThreads, shared, stream, a, w);
}

template <class T>
Status run(const GroupNormArgs& a, void* stream) {
  const bool packets = a.channels % kPacket<T> == 0 && in_packets<T>(a.x, a.x_stride_image, a.x_stride_pixel) &&
                       in_packets<T>(a.normed, 0, 0) && in_packets<T>(a.summed, 0, 0) &&
                       in_packets<T>(a.residual, a.residual_stride_image, a.residual_stride_pixel);
  return packets ? run<T, kPacket<T>>(a, stream) : run<T, 1>(a, stream);
}

}  // namespace

int64_t group_norm_workspace(const GroupNormArgs& a) { return Layout(a, nullptr).bytes; }

Status group_norm(const GroupNormArgs& a, void* stream) {
  const Status status = check_group_norm(a);
  if (status != Status::kOk || a.batch == 0) return status;
  if (a.dtype == DType::kFloat32) return run<float>(a, stream);
  return a.dtype == DType::kBFloat16 ? run<BFloat16>(a, stream) : run<Float16>(a, stream);
}

}  // namespace dove::cuda
