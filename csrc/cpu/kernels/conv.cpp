// 3x3 convolution by Winograd's F(4x4, 3x3), with GroupNorm and SiLU before it and a residual sum behind it.
//
// A task is up to 64 tiles (conv_layout.h):
//   1. for each vector of input channels: normalise the pixels into a patch, transform its tiles;
//   2. for each panel of output channels: 36 matrix products, tiles x channels_in by channels_in x panel, then
//      transform back, add bias and residual, round and store.
// What lies in between stays in the core's caches as far as they reach; the weights stream past, once a task.
#include "dove/conv.h"

#include "../conv_layout.h"
#include "../parallel.h"
#include "conv_transforms.h"
#include "silu.h"
#include "vec.h"

namespace dove::cpu::DOVE_ISA {
namespace {

using Layout = Conv3x3Layout;

constexpr int kPanel = 2 * kLanes;  // output channels that one matrix product makes
#if defined(__AVX512F__)
constexpr int kRows = 8;  // tiles that it makes at once
#else
constexpr int kRows = 4;
#endif

// A square of tiles of one image.
struct Square {
  int64_t image;
  int64_t first_row;  // of output pixels
  int64_t first_column;
  int64_t first_tile;  // of the task's
};

struct Scratch {
  float* inputs;    // [point, tile, input_stride]
  float* products;  // [point, tile, kPanel], points product_stride apart
  float* patch;     // [row, column, kLanes] of the pixels that a square reads
};

// What the normalisation multiplies and adds, per image: center, scale and shift, each [channels_in].
void prepare_scales(const Conv3x3Args& a, float* scales) {
  const int64_t per_group = a.channels_in / a.groups;
  for (int64_t image = 0; image < a.batch; ++image) {
    float* center = scales + image * 3 * a.channels_in;
    for (int64_t c = 0; c < a.channels_in; ++c) {
      const int64_t group = image * a.groups + c / per_group;
      center[c] = a.mean[group];
      center[a.channels_in + c] = a.rstd[group] * a.norm_weight[c];
      center[2 * a.channels_in + c] = a.norm_bias[c];
    }
  }
}

// Channels [c, c + kLanes) of the pixels that a square's tiles read, normalised; zero outside the image.
template <class T>
void fill_patch(const Conv3x3Args& a, const Square& square, int64_t pixels, const float* scales, int64_t c,
                float* patch) {
  const T* x = static_cast<const T*>(a.x) + square.image * a.x_stride_image + c;
  const bool norm = scales != nullptr;
  const Vec center = norm ? load(scales + c) : Vec{};
  const Vec scale = norm ? load(scales + a.channels_in + c) : Vec{};
  const Vec shift = norm ? load(scales + 2 * a.channels_in + c) : Vec{};
  const int64_t first = square.first_column - 1;
  const int64_t begin = first < 0 ? -first : 0;
  const int64_t end = a.width - first < pixels ? a.width - first : pixels;
  for (int64_t i = 0; i < pixels; ++i, patch += pixels * kLanes) {
    const int64_t row = square.first_row - 1 + i;
    if (row < 0 || row >= a.height) {
      std::memset(patch, 0, pixels * kLanes * sizeof(float));
      continue;
    }
    for (int64_t j = 0; j < begin; ++j) store(patch + j * kLanes, Vec{});
    for (int64_t j = end; j < pixels; ++j) store(patch + j * kLanes, Vec{});
    const T* from = x + row * a.x_stride_row + first * a.x_stride_pixel;
    if (!norm) {
      for (int64_t j = begin; j < end; ++j) store(patch + j * kLanes, load(from + j * a.x_stride_pixel));
    } else if (a.silu) {
      for (int64_t j = begin; j < end; ++j) {
        store(patch + j * kLanes, silu<T>(fma(load(from + j * a.x_stride_pixel) - center, scale, shift)));
      }
    } else {
      for (int64_t j = begin; j < end; ++j) {
        store(patch + j * kLanes, fma(load(from + j * a.x_stride_pixel) - center, scale, shift));
      }
    }
  }
}

// A square's tiles to their 36 points, as the channels from `inputs` on.
void transform_patch(const Layout& w, const float* patch, int64_t pixels, float* inputs) {
  const int64_t row_values = pixels * kLanes;
  for (int64_t tile_row = 0; tile_row < w.side; ++tile_row) {
    // Along the columns first: neighbouring tiles share them.
    Vec columns[Layout::kPatchSide][6];
    const float* rows = patch + tile_row * Layout::kTile * row_values;
    for (int64_t j = 0; j < pixels; ++j) {
      Vec d[6];
      for (int i = 0; i < 6; ++i) d[i] = load(rows + i * row_values + j * kLanes);
      transform_input(d, columns[j]);
    }
    for (int64_t tile_column = 0; tile_column < w.side; ++tile_column, inputs += w.input_stride) {
      const Vec(*first)[6] = columns + tile_column * Layout::kTile;
      for (int i = 0; i < 6; ++i) {
        Vec d[6], v[6];
        for (int j = 0; j < 6; ++j) d[j] = first[j][i];
        transform_input(d, v);
        for (int j = 0; j < 6; ++j) store(inputs + (i * 6 + j) * w.tiles * w.input_stride, v[j]);
      }
    }
  }
}

// products[kRows, kPanel] = inputs[kRows, channels] * weights[channels, kPanel]
inline void multiply(const float* inputs, int64_t stride, const float* weights, int64_t channels, float* products) {
  Vec sums[kRows][2] = {};
  for (int64_t k = 0; k < channels; ++k, weights += kPanel) {
    const Vec left = load(weights), right = load(weights + kLanes);
    for (int i = 0; i < kRows; ++i) {
      const Vec value = splat(inputs[i * stride + k]);
      sums[i][0] = fma(value, left, sums[i][0]);
      sums[i][1] = fma(value, right, sums[i][1]);
    }
  }
  for (int i = 0; i < kRows; ++i) {
    store(products + i * kPanel, sums[i][0]);
    store(products + i * kPanel + kLanes, sums[i][1]);
  }
}

// A vector of output channels of a square: back from the points, then bias, residual, and memory.
template <class T>
void write_outputs(const Conv3x3Args& a, const Layout& w, const Square& square, int64_t c, const float* products) {
  const int64_t row_values = a.width * a.channels_out;
  const int64_t image = square.image * a.height * row_values;
  const T* residual = static_cast<const T*>(a.residual);
  const Vec bias = load(a.bias + c);
  for (int64_t tile = 0; tile < w.side * w.side; ++tile, products += kPanel) {
    const int64_t row = square.first_row + tile / w.side * Layout::kTile;
    const int64_t column = square.first_column + tile % w.side * Layout::kTile;
    if (row >= a.height || column >= a.width) continue;
    Vec half[6][4];
    for (int j = 0; j < 6; ++j) {
      Vec m[6];
      for (int i = 0; i < 6; ++i) m[i] = load(products + (i * 6 + j) * w.product_stride);
      transform_output(m, half[j]);
    }
    const int64_t rows = a.height - row < Layout::kTile ? a.height - row : Layout::kTile;
    const int64_t columns = a.width - column < Layout::kTile ? a.width - column : Layout::kTile;
    for (int64_t i = 0; i < rows; ++i) {
      Vec m[6], y[4];
      for (int j = 0; j < 6; ++j) m[j] = half[j][i];
      transform_output(m, y);
      const int64_t at = image + (row + i) * row_values + column * a.channels_out + c;
      T* to = static_cast<T*>(a.out) + at;
      for (int64_t j = 0; j < columns; ++j) {
        Vec value = y[j] + bias;
        if (residual != nullptr) value += load(residual + at + j * a.channels_out);
        store(to + j * a.channels_out, value);
      }
    }
  }
}

Square square_of(const Layout& w, int64_t task, int64_t i) {
  const int64_t index = task * w.task_squares + i;
  const int64_t per_image = w.square_rows * w.square_columns;
  const int64_t within = index % per_image;
  const int64_t pixels = w.side * Layout::kTile;
  return {index / per_image, within / w.square_columns * pixels, within % w.square_columns * pixels,
          i * w.side * w.side};
}

template <class T>
void run_task(const Conv3x3Args& a, const Layout& w, const float* scales, int64_t task, const Scratch& s) {
  const int64_t left = w.squares - task * w.task_squares;
  const int64_t squares = left < w.task_squares ? left : w.task_squares;
  const int64_t tiles = squares * w.side * w.side;
  const int64_t pixels = w.side * Layout::kTile + 2;
  for (int64_t i = 0; i < squares; ++i) {
    const Square square = square_of(w, task, i);
    const float* own = scales == nullptr ? nullptr : scales + square.image * 3 * a.channels_in;
    for (int64_t c = 0; c < a.channels_in; c += kLanes) {
      fill_patch<T>(a, square, pixels, own, c, s.patch);
      transform_patch(w, s.patch, pixels, s.inputs + square.first_tile * w.input_stride + c);
    }
  }
  for (int64_t c = 0; c < a.channels_out; c += kPanel) {
    const float* weights = a.packed + c * Layout::kPoints * a.channels_in;
    for (int64_t point = 0; point < Layout::kPoints; ++point, weights += a.channels_in * kPanel) {
      const float* inputs = s.inputs + point * w.tiles * w.input_stride;
      float* products = s.products + point * w.product_stride;
      for (int64_t tile = 0; tile < tiles; tile += kRows) {
        multiply(inputs + tile * w.input_stride, w.input_stride, weights, a.channels_in, products + tile * kPanel);
      }
    }
    for (int64_t i = 0; i < squares; ++i) {
      const Square square = square_of(w, task, i);
      const float* products = s.products + square.first_tile * kPanel;
      for (int64_t j = 0; j < kPanel; j += kLanes) write_outputs<T>(a, w, square, c + j, products + j);
    }
  }
}

template <class T>
void run(const Conv3x3Args& a) {
  const Layout w(a);
  char* workspace = static_cast<char*>(a.workspace);
  float* scales = nullptr;
  if (a.mean != nullptr) {
    scales = reinterpret_cast<float*>(workspace);
    prepare_scales(a, scales);
  }
  parallel_for(w.tasks, a.threads, [&](int64_t task) {
    Scratch s;
    s.inputs = reinterpret_cast<float*>(workspace + w.scale_bytes + thread_index() * w.thread_bytes);
    s.products = s.inputs + Layout::kPoints * w.tiles * w.input_stride;
    s.patch = s.products + Layout::kPoints * w.product_stride;
    run_task<T>(a, w, scales, task, s);
  });
}

}  // namespace

Status conv3x3(const Conv3x3Args& a) {
  a.dtype == DType::kFloat32 ? run<float>(a) : run<BFloat16>(a);
  return Status::kOk;
}

// packed[panel, point, channels_in, kPanel]
Status conv3x3_pack(const Conv3x3PackArgs& a) {
  parallel_for(a.channels_out / kPanel, a.threads, [&](int64_t panel) {
    float* to = a.packed + panel * Layout::kPoints * a.channels_in * kPanel;
    for (int64_t c = 0; c < a.channels_in; ++c) {
      for (int64_t o = 0; o < kPanel; ++o) {
        const float* weight = a.weight + ((panel * kPanel + o) * a.channels_in + c) * 9;
        double half[3][6], point[6];
        for (int j = 0; j < 3; ++j) {
          const double column[3] = {weight[j], weight[3 + j], weight[6 + j]};
          transform_weight(column, half[j]);
        }
        for (int i = 0; i < 6; ++i) {
          const double row[3] = {half[0][i], half[1][i], half[2][i]};
          transform_weight(row, point);
          for (int j = 0; j < 6; ++j) {
            to[((i * 6 + j) * a.channels_in + c) * kPanel + o] = static_cast<float>(point[j]);
          }
        }
      }
    }
  });
  return Status::kOk;
}

}  // namespace dove::cpu::DOVE_ISA
