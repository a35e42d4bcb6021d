// The backward of GroupNorm + SiLU (+ residual sum) over channels-last images.
//
// With d = x - mean, y = d * scale + shift (scale = weight * rstd) and dy = grad * silu'(y):
//   1. sums: per chunk and channel, of dy and of dy * d;
//   2. between the passes, one task per image adds its chunks in order, in double, and makes of its groups' means
//      two factors per channel, along_x and constant;
//   3. grad_x = dy * scale + d * along_x + constant (+ grad_summed). dy is computed anew, so that
//      nothing of an image's size is kept between the passes.
// Gradients of weight and bias are the images' sums, added in order at the end; so is that of x_bias, of which each
// chunk's share is summed from cache when its grad_x is stored. Chunks and the order of the passes:
// group_norm_chunks.h.
//
// Pixels are taken one by one although that loads what belongs to a channel anew for each: several at once are
// several places in memory that the hardware's prefetch must follow, which took twice the time on large images.
#include "dove/group_norm.h"

#include "../group_norm_layout.h"
#include "group_norm_chunks.h"

namespace dove::cpu::DOVE_ISA {
namespace {

// The rows of one chunk.
template <class T>
struct Rows {
  const T* x;
  int64_t x_stride;
  const T* grad;
  int64_t grad_stride;
};

template <class T>
Rows<T> rows_of(const GroupNormGradArgs& a, const Chunk& chunk) {
  return {pixel_row<T>(a.summed, chunk.image, a.summed_stride_image, chunk.first_pixel, a.summed_stride_pixel),
          a.summed_stride_pixel,
          pixel_row<T>(a.grad, chunk.image, a.grad_stride_image, chunk.first_pixel, a.grad_stride_pixel),
          a.grad_stride_pixel};
}

// What the channels of one image are multiplied with.
struct Factors {
  const float* center;
  const float* scale;
  const float* shift;
  const float* along_x;
  const float* constant;
};

Factors factors_of(const GroupNormBackwardLayout& w, int64_t image) {
  const int64_t at = image * w.padded_channels;
  return {w.center + at, w.scale + at, w.shift, w.along_x + at, w.constant + at};
}

// 1 / b for b in [1, 2^127], to about a unit in the last place.
inline Vec reciprocal(Vec b, float) {
#if defined(__AVX512F__)
  // Newton's step doubles the 14 bits of the estimate and takes less time than a division.
  const Vec r = reinterpret_cast<Vec>(_mm512_rcp14_ps(reinterpret_cast<__m512>(b)));
  return fma(r, 1.0f - b * r, r);
#else
  return 1.0f / b;
#endif
}

// What ends in 8 bits does not need more than 14.
inline Vec reciprocal(Vec b, BFloat16) {
#if defined(__AVX512F__)
  return reinterpret_cast<Vec>(_mm512_rcp14_ps(reinterpret_cast<__m512>(b)));
#else
  return 1.0f / b;
#endif
}

// silu'(y) = s (1 + y (1 - s)), s = sigmoid(y). 1 - s is e^-y s, which keeps its digits where s is near 1.
template <class T>
inline Vec silu_slope(Vec y) {
  const Vec e = exp2(y * -1.44269504f);
  const Vec s = reciprocal(1.0f + e, T{});
  return s * fma(y, e * s, splat(1.0f));
}

template <class T, bool silu>
inline Vec grad_of_y(Vec grad, Vec d, Vec scale, Vec shift) {
  return silu ? grad * silu_slope<T>(fma(d, scale, shift)) : grad;
}

template <class T, bool silu>
void sums(const GroupNormGradArgs& a, const GroupNormBackwardLayout& w, const Chunk& chunk) {
  const Rows<T> rows = rows_of<T>(a, chunk);
  const Factors f = factors_of(w, chunk.image);
  float* of_dy = w.chunk_sums + (chunk.image * w.chunks + chunk.index) * 2 * w.padded_channels;
  float* of_dy_d = of_dy + w.padded_channels;
  std::memset(of_dy, 0, 2 * w.padded_channels * sizeof(float));
  const auto add = [&](int64_t c, Vec x, Vec grad) {
    const Vec d = x - load(f.center + c);
    const Vec dy = grad_of_y<T, silu>(grad, d, load(f.scale + c), load(f.shift + c));
    store(of_dy + c, load(of_dy + c) + dy);
    store(of_dy_d + c, fma(dy, d, load(of_dy_d + c)));
  };
  const T* x = rows.x;
  const T* grad = rows.grad;
  for (int64_t p = 0; p < chunk.pixels; ++p, x += rows.x_stride, grad += rows.grad_stride) {
    int64_t c = 0;
    for (; c + kLanes <= a.channels; c += kLanes) add(c, load(x + c), load(grad + c));
    const int64_t rest = a.channels - c;
    if (rest > 0) add(c, load_some(x + c, rest), load_some(grad + c, rest));
  }
}

// The channels' center, scale and shift. Lanes of padding get zeros.
void prepare(const GroupNormGradArgs& a, const GroupNormBackwardLayout& w) {
  const int64_t per_group = a.channels / a.groups;
  const auto pad = [&](float* row) {
    for (int64_t c = a.channels; c < w.padded_channels; ++c) row[c] = 0;
  };
  const float* weight = static_cast<const float*>(a.weight);
  const float* bias = static_cast<const float*>(a.bias);
  const float* x_bias = static_cast<const float*>(a.x_bias);
  for (int64_t c = 0; c < a.channels; ++c) w.shift[c] = bias[c];
  pad(w.shift);
  for (int64_t image = 0; image < a.batch; ++image) {
    float* center = w.center + image * w.padded_channels;
    float* scale = w.scale + image * w.padded_channels;
    for (int64_t g = 0, c = 0; g < a.groups; ++g) {
      const float mean = a.mean[image * a.groups + g], rstd = a.rstd[image * a.groups + g];
      for (const int64_t end = c + per_group; c < end; ++c) {
        center[c] = x_bias == nullptr ? mean : mean - x_bias[c];
        scale[c] = weight[c] * rstd;
      }
    }
    pad(center);
    pad(scale);
    pad(w.along_x + image * w.padded_channels);
    pad(w.constant + image * w.padded_channels);
  }
}

// An image's share of the gradients of bias and weight, and what its groups' means take from grad_x.
void finish_sums(const GroupNormGradArgs& a, const GroupNormBackwardLayout& w, int64_t image) {
  const int64_t padded = w.padded_channels;
  double* of_dy = w.image_sums + image * 2 * padded;
  double* of_dy_z = of_dy + padded;  // of dy * d until the group's rstd is multiplied in
  const float* chunk = w.chunk_sums + image * w.chunks * 2 * padded;
  for (int64_t i = 0; i < 2 * padded; ++i) of_dy[i] = chunk[i];
  for (int64_t k = 1; k < w.chunks; ++k) {
    chunk += 2 * padded;
    for (int64_t i = 0; i < 2 * padded; ++i) of_dy[i] += chunk[i];
  }
  const int64_t per_group = a.channels / a.groups;
  const double count = static_cast<double>(a.pixels) * per_group;
  const float* weight = static_cast<const float*>(a.weight);
  for (int64_t g = 0; g < a.groups; ++g) {
    const double rstd = a.rstd[image * a.groups + g];
    const int64_t first = g * per_group;
    double of_dz = 0, of_dz_z = 0;  // dz = dy * weight
    for (int64_t c = first; c < first + per_group; ++c) {
      of_dy_z[c] *= rstd;
      of_dz += of_dy[c] * weight[c];
      of_dz_z += of_dy_z[c] * weight[c];
    }
    const float along_x = static_cast<float>(-rstd * rstd * of_dz_z / count);
    const float constant = static_cast<float>(-rstd * of_dz / count);
    for (int64_t c = first; c < first + per_group; ++c) {
      w.along_x[image * padded + c] = along_x;
      w.constant[image * padded + c] = constant;
    }
  }
}

template <class T, bool silu, bool with_summed>
void grad_x(const GroupNormGradArgs& a, const GroupNormBackwardLayout& w, const Chunk& chunk) {
  const Rows<T> rows = rows_of<T>(a, chunk);
  const Factors f = factors_of(w, chunk.image);
  const auto grad_of_x = [&](int64_t c, Vec x, Vec grad) {
    const Vec d = x - load(f.center + c), scale = load(f.scale + c);
    const Vec dy = grad_of_y<T, silu>(grad, d, scale, load(f.shift + c));
    return fma(dy, scale, fma(d, load(f.along_x + c), load(f.constant + c)));
  };
  const T* x = rows.x;
  const T* grad = rows.grad;
  const T* summed = nullptr;
  if (with_summed) {
    summed = pixel_row<T>(a.grad_summed, chunk.image, a.grad_summed_stride_image, chunk.first_pixel,
                          a.grad_summed_stride_pixel);
  }
  T* to = static_cast<T*>(a.grad_x) + (chunk.image * a.pixels + chunk.first_pixel) * a.channels;
  for (int64_t p = 0; p < chunk.pixels; ++p, x += rows.x_stride, grad += rows.grad_stride, to += a.channels) {
    int64_t c = 0;
    for (; c + kLanes <= a.channels; c += kLanes) {
      Vec v = grad_of_x(c, load(x + c), load(grad + c));
      if (with_summed) v += load(summed + c);
      store(to + c, v);
    }
    if (const int64_t rest = a.channels - c; rest > 0) {
      Vec v = grad_of_x(c, load_some(x + c, rest), load_some(grad + c, rest));
      if (with_summed) v += load_some(summed + c, rest);
      store_some(to + c, v, rest);
    }
    if (with_summed) summed += a.grad_summed_stride_pixel;
  }
}

// The channels' sums of a chunk of grad_x.
template <class T>
void sum_chunk(const GroupNormGradArgs& a, const GroupNormBackwardLayout& w, const Chunk& chunk) {
  float* sums = w.x_sums + (chunk.image * w.chunks + chunk.index) * w.padded_channels;
  std::memset(sums, 0, w.padded_channels * sizeof(float));
  const T* row = static_cast<const T*>(a.grad_x) + (chunk.image * a.pixels + chunk.first_pixel) * a.channels;
  for (int64_t p = 0; p < chunk.pixels; ++p, row += a.channels) {
    int64_t c = 0;
    for (; c + kLanes <= a.channels; c += kLanes) store(sums + c, load(sums + c) + load(row + c));
    if (const int64_t rest = a.channels - c; rest > 0) store(sums + c, load(sums + c) + load_some(row + c, rest));
  }
}

template <class T, bool silu>
Status run(const GroupNormGradArgs& a) {
  const GroupNormBackwardLayout w(a, a.workspace);
  prepare(a, w);
  two_passes(
      a, w, a.pixels * a.channels * static_cast<int64_t>(sizeof(T)),
      [&](const Chunk& chunk) { sums<T, silu>(a, w, chunk); }, [&](int64_t image) { finish_sums(a, w, image); },
      [&](const Chunk& chunk) {
        a.grad_summed == nullptr ? grad_x<T, silu, false>(a, w, chunk) : grad_x<T, silu, true>(a, w, chunk);
        if (a.grad_x_bias != nullptr) sum_chunk<T>(a, w, chunk);
      });
  for (int64_t c = 0; c < a.channels; ++c) {
    double bias = 0, weight = 0;
    for (int64_t image = 0; image < a.batch; ++image) {
      bias += w.image_sums[image * 2 * w.padded_channels + c];
      weight += w.image_sums[(image * 2 + 1) * w.padded_channels + c];
    }
    a.grad_bias[c] = static_cast<float>(bias);
    a.grad_weight[c] = static_cast<float>(weight);
    if (a.grad_x_bias == nullptr) continue;
    double sum = 0;
    for (int64_t chunk = 0; chunk < a.batch * w.chunks; ++chunk) sum += w.x_sums[chunk * w.padded_channels + c];
    a.grad_x_bias[c] = static_cast<float>(sum);
  }
  return Status::kOk;
}

}  // namespace

Status group_norm_backward(const GroupNormGradArgs& a) {
  if (a.dtype == DType::kFloat32) return a.silu ? run<float, true>(a) : run<float, false>(a);
  return a.silu ? run<BFloat16, true>(a) : run<BFloat16, false>(a);
}

}  // namespace dove::cpu::DOVE_ISA
