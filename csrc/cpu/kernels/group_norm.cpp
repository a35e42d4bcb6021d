// GroupNorm + SiLU (+ bias and residual sum) over channels-last images.
//
//   1. statistics: make and store the sum if there is a residual; per channel, take the mean and then the
//      squares about it, the second time from cache, so that a mean far larger than the deviation does no harm;
//      combine the channels of each group; store mean and squared deviations of (chunk, group).
//   2. between the passes, one task per image merges its chunks in order, in double.
//   3. normalise.
// Without a residual, the bias of x costs nothing at a pixel: it moves a channel's mean.
// Chunks and the order of the passes: group_norm_chunks.h.
#include "dove/group_norm.h"

#include "../group_norm_layout.h"
#include "group_norm_chunks.h"
#include "silu.h"

namespace dove::cpu::DOVE_ISA {
namespace {

// Vectors of channels that one sweep over a chunk's pixels sums up: 3 registers each.
#if defined(__AVX512F__)
constexpr int kSweep = 8;
#else
constexpr int kSweep = 4;
#endif

template <class T>
T* dense_row(void* base, const GroupNormArgs& a, int64_t image, int64_t pixel) {
  return static_cast<T*>(base) + (image * a.pixels + pixel) * a.channels;
}

template <class T>
void add_rows(const T* x, const T* residual, T* to, int64_t channels) {
  int64_t c = 0;
  for (; c + kLanes <= channels; c += kLanes) store(to + c, load(x + c) + load(residual + c));
  if (c < channels) {
    const int64_t rest = channels - c;
    store_some(to + c, load_some(x + c, rest) + load_some(residual + c, rest), rest);
  }
}

template <class T>
void add_rows(const T* x, const T* residual, const float* bias, T* to, int64_t channels) {
  int64_t c = 0;
  for (; c + kLanes <= channels; c += kLanes) store(to + c, load(x + c) + load(residual + c) + load(bias + c));
  if (c < channels) {
    const int64_t rest = channels - c;
    store_some(to + c, load_some(x + c, rest) + load_some(residual + c, rest) + load_some(bias + c, rest), rest);
  }
}

// The bias that the kernels have still to add: none where the stored sum holds it.
const float* pending_bias(const GroupNormArgs& a) {
  return a.residual == nullptr ? static_cast<const float*>(a.x_bias) : nullptr;
}

// Sums of a vector of channels over a chunk, taken about a first estimate of its mean: sums[0] gets that estimate,
// sums[1] the sum of what differs from it, sums[2] the sum of its squares, each `padded` apart. The estimate
// itself is summed relative to the first pixel. The chunk is read twice, the second time from cache.
// `values` limits an incomplete vector, for which `count` is 1.
template <class T, int count>
void sweep(const T* rows, int64_t stride, int64_t pixels, float* sums, int64_t padded, int64_t values = kLanes) {
  const auto load_pixel = [&](int64_t p, int j) {
    const T* from = rows + p * stride + j * kLanes;
    return values == kLanes ? load(from) : load_some(from, values);
  };
  Vec center[count], sum[count], squares[count];
  for (int j = 0; j < count; ++j) {
    center[j] = load_pixel(0, j);
    sum[j] = squares[j] = Vec{};
  }
  for (int64_t p = 1; p < pixels; ++p) {
    for (int j = 0; j < count; ++j) sum[j] += load_pixel(p, j) - center[j];
  }
  for (int j = 0; j < count; ++j) {
    center[j] += sum[j] / static_cast<float>(pixels);
    sum[j] = Vec{};
  }
  for (int64_t p = 0; p < pixels; ++p) {
    for (int j = 0; j < count; ++j) {
      const Vec d = load_pixel(p, j) - center[j];
      sum[j] += d;
      squares[j] = fma(d, d, squares[j]);
    }
  }
  for (int j = 0; j < count; ++j) {
    store(sums + j * kLanes, center[j]);
    store(sums + padded + j * kLanes, sum[j]);
    store(sums + 2 * padded + j * kLanes, squares[j]);
  }
}

// From the sums of the channels to mean and squared deviations of each group: the average of the channels' means,
// and their squares, each about its own mean, plus the spread of the means. The means are taken relative to that
// of the group's first channel, so that float32 loses nothing to a large common part.
void combine_channels(const GroupNormArgs& a, const GroupNormLayout& w, const Chunk& chunk, float* sums) {
  const float pixels = static_cast<float>(chunk.pixels);
  const float* center = sums;
  float* sum = sums + w.padded_channels;
  float* squares = sum + w.padded_channels;
  for (int64_t c = 0; c < a.channels; c += kLanes) {
    const Vec own = load(sum + c) / pixels;
    store(squares + c, load(squares + c) - own * load(sum + c));
    store(sum + c, own);
  }
  if (const float* bias = pending_bias(a); bias != nullptr) {
    for (int64_t c = 0; c < a.channels; ++c) sum[c] += bias[c];
  }
  const int64_t per_group = a.channels / a.groups;
  const int64_t part = (chunk.image * w.chunks + chunk.index) * a.groups;
  for (int64_t g = 0; g < a.groups; ++g) {
    const int64_t first = g * per_group;
    float total = 0, deviations = 0, spread = 0;
    for (int64_t c = first; c < first + per_group; ++c) {
      total += center[c] - center[first] + sum[c];
      deviations += squares[c];
    }
    const float mean = total / per_group;
    for (int64_t c = first; c < first + per_group; ++c) {
      const float apart = center[c] - center[first] + sum[c] - mean;
      spread += apart * apart;
    }
    w.chunk_mean[part + g] = double{center[first]} + mean;
    w.chunk_squares[part + g] = double{deviations} + double{pixels} * spread;
  }
}

template <class T>
void statistics(const GroupNormArgs& a, const GroupNormLayout& w, const Chunk& chunk) {
  const T* row = pixel_row<T>(a.x, chunk.image, a.x_stride_image, chunk.first_pixel, a.x_stride_pixel);
  int64_t stride = a.x_stride_pixel;
  if (a.residual != nullptr) {
    const T* residual =
        pixel_row<T>(a.residual, chunk.image, a.residual_stride_image, chunk.first_pixel, a.residual_stride_pixel);
    T* summed = dense_row<T>(a.summed, a, chunk.image, chunk.first_pixel);
    const float* bias = static_cast<const float*>(a.x_bias);
    for (int64_t p = 0; p < chunk.pixels; ++p) {
      const T *one = row + p * a.x_stride_pixel, *other = residual + p * a.residual_stride_pixel;
      T* to = summed + p * a.channels;
      bias == nullptr ? add_rows(one, other, to, a.channels) : add_rows(one, other, bias, to, a.channels);
    }
    row = summed;
    stride = a.channels;
  }
  const int64_t padded = w.padded_channels;
  float* sums = w.channel_sums + int64_t{thread_index()} * 3 * padded;
  int64_t c = 0;
  for (; c + kSweep * kLanes <= a.channels; c += kSweep * kLanes) {
    sweep<T, kSweep>(row + c, stride, chunk.pixels, sums + c, padded);
  }
  for (; c + kLanes <= a.channels; c += kLanes) sweep<T, 1>(row + c, stride, chunk.pixels, sums + c, padded);
  if (c < a.channels) sweep<T, 1>(row + c, stride, chunk.pixels, sums + c, padded, a.channels - c);

  combine_channels(a, w, chunk, sums);
}

// Merges an image's chunks and prepares what the normalisation multiplies and adds per channel.
void finish_statistics(const GroupNormArgs& a, const GroupNormLayout& w, int64_t image) {
  const int64_t per_group = a.channels / a.groups;
  const double* means = w.chunk_mean + image * w.chunks * a.groups;
  const double* squares = w.chunk_squares + image * w.chunks * a.groups;
  const float* weight = static_cast<const float*>(a.weight);
  const float* bias = static_cast<const float*>(a.bias);
  const float* x_bias = pending_bias(a);
  const auto pixels_in = [&](int64_t index) { return double(chunk_of(a, w, image, index).pixels); };
  for (int64_t g = 0; g < a.groups; ++g) {
    double total = 0;
    for (int64_t i = 0; i < w.chunks; ++i) total += means[i * a.groups + g] * pixels_in(i);
    const double mean = total / a.pixels;
    double deviations = 0;
    for (int64_t i = 0; i < w.chunks; ++i) {
      const double apart = means[i * a.groups + g] - mean;
      deviations += squares[i * a.groups + g] + pixels_in(i) * per_group * apart * apart;
    }
    const double count = static_cast<double>(a.pixels) * per_group;
    const double variance = deviations > 0 || deviations != deviations ? deviations / count : 0;
    const double rstd = 1 / __builtin_sqrt(variance + a.eps);
    a.mean[image * a.groups + g] = static_cast<float>(mean);
    a.rstd[image * a.groups + g] = static_cast<float>(rstd);
    for (int64_t c = g * per_group; c < (g + 1) * per_group; ++c) {
      const int64_t at = image * w.padded_channels + c;
      const double of_x =
          x_bias == nullptr ? mean : mean - x_bias[c];  // the group's mean, as x has it without its bias
      w.center[at] = static_cast<float>(of_x);
      w.scale[at] = static_cast<float>(weight[c] * rstd);
      w.shift[at] = static_cast<float>(bias[c] - (of_x - w.center[at]) * rstd * weight[c]);
    }
  }
}

template <class T, bool with_silu>
inline Vec normalised(Vec x, const float* center, const float* scale, const float* shift) {
  const Vec y = fma(x - load(center), load(scale), load(shift));
  return with_silu ? silu<T>(y) : y;
}

template <class T, bool with_silu>
void normalise(const GroupNormArgs& a, const GroupNormLayout& w, const Chunk& chunk) {
  const float* center = w.center + chunk.image * w.padded_channels;
  const float* scale = w.scale + chunk.image * w.padded_channels;
  const float* shift = w.shift + chunk.image * w.padded_channels;
  T* to = dense_row<T>(a.normed, a, chunk.image, chunk.first_pixel);
  const T* from = pixel_row<T>(a.x, chunk.image, a.x_stride_image, chunk.first_pixel, a.x_stride_pixel);
  int64_t stride = a.x_stride_pixel;
  if (a.residual != nullptr) {
    from = dense_row<T>(a.summed, a, chunk.image, chunk.first_pixel);
    stride = a.channels;
  }
  for (int64_t p = 0; p < chunk.pixels; ++p, from += stride, to += a.channels) {
    int64_t c = 0;
    for (; c + kLanes <= a.channels; c += kLanes) {
      store(to + c, normalised<T, with_silu>(load(from + c), center + c, scale + c, shift + c));
    }
    if (c < a.channels) {
      const int64_t rest = a.channels - c;
      store_some(to + c, normalised<T, with_silu>(load_some(from + c, rest), center + c, scale + c, shift + c), rest);
    }
  }
}

template <class T, bool with_silu>
void run(const GroupNormArgs& a) {
  const GroupNormLayout w(a, a.workspace);
  two_passes(
      a, w, a.pixels * a.channels * static_cast<int64_t>(sizeof(T)),
      [&](const Chunk& chunk) { statistics<T>(a, w, chunk); }, [&](int64_t image) { finish_statistics(a, w, image); },
      [&](const Chunk& chunk) {
        if (a.normed != nullptr) normalise<T, with_silu>(a, w, chunk);
      });
}

}  // namespace

Status group_norm(const GroupNormArgs& a) {
  if (a.dtype == DType::kFloat32) {
    a.silu ? run<float, true>(a) : run<float, false>(a);
  } else {
    a.silu ? run<BFloat16, true>(a) : run<BFloat16, false>(a);
  }
  return Status::kOk;
}

}  // namespace dove::cpu::DOVE_ISA
