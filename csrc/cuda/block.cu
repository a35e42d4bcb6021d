// The element-wise kernels of the parallel-residual block; see dove/block.h for what they compute.
//
// pair_norm: one warp owns one row and holds it in registers, so x is read once for mean, squared deviations and both
// results. Rows too wide for the registers are read again, from the L1 cache.
//
//     row r   | lane 0: 8 values | lane 1 | ... | lane 31 | lane 0: the next 8 | ...       width 512: 2 packets a lane
//
//   bytes, for rows R of width D and e bytes a value: pair_norm 3 R D e, bias_gelu 2 R D e, add_branches 4 R D e,
//   pair_norm_backward 4 R D e for grad_x and 3 R D e for the parameters, bias_gelu_backward 3 R D e.
#include "dove/block.h"

#include "vectors.h"

namespace dove::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kWarps = kThreads / 32;
constexpr int kMaxHeld = 4;  // packets of a row that a lane holds

// The row of a warp, packet by packet, from registers or, if `held` is 0, from memory.
template <class T, int packet, int held>
struct Row {
  const T* from;
  int width;
  float values[held > 0 ? held : 1][packet];

  __device__ Row(const void* base, int64_t row, int64_t width_)
      : from(static_cast<const T*>(base) + row * width_), width(static_cast<int>(width_)) {
#pragma unroll
    for (int j = 0; j < held; ++j) {
      const int i = (j * 32 + static_cast<int>(threadIdx.x) % 32) * packet;
      if (i < width) load<packet>(from + i, values[j]);
    }
  }

  __device__ void get(int j, int at, float (&out)[packet]) const {
    if constexpr (held > 0) {
#pragma unroll
      for (int i = 0; i < packet; ++i) out[i] = values[j][i];
    } else {
      load<packet>(from + at, out);
    }
  }

  // body(packet of this lane, first index): the loop is unrolled where the row is held.
  template <class Body>
  __device__ void each(Body body) const {
    const int lane = static_cast<int>(threadIdx.x) % 32;
    if constexpr (held > 0) {
#pragma unroll
      for (int j = 0; j < held; ++j) {
        if ((j * 32 + lane) * packet < width) body(j, (j * 32 + lane) * packet);
      }
    } else {
      for (int at = lane * packet; at < width; at += 32 * packet) body(0, at);
    }
  }
};

template <class T, int packet>
__device__ inline void load_parameters(const void* base, bool wide, int i, float (&values)[packet]) {
  if (!wide) {
    load<packet>(static_cast<const T*>(base) + i, values);
    return;
  }
#pragma unroll
  for (int j = 0; j < packet; ++j) values[j] = static_cast<const float*>(base)[i + j];
}

template <class T, int packet, int held>
__global__ void __launch_bounds__(kThreads) normalise_pair(PairNormArgs a, bool wide) {
  const int64_t r = int64_t{blockIdx.x} * kWarps + threadIdx.x / 32;
  if (r >= a.rows) return;
  const Row<T, packet, held> row(a.x, r, a.width);
  float x[packet];
  float sum = 0;
  row.each([&](int j, int at) {
    row.get(j, at, x);
#pragma unroll
    for (int i = 0; i < packet; ++i) sum += x[i];
  });
  const float mean = warp_sum(sum) / static_cast<float>(a.width);
  float squares = 0;
  row.each([&](int j, int at) {
    row.get(j, at, x);
#pragma unroll
    for (int i = 0; i < packet; ++i) squares += (x[i] - mean) * (x[i] - mean);
  });
  const float rstd = 1.0f / sqrtf(warp_sum(squares) / static_cast<float>(a.width) + static_cast<float>(a.eps));
  row.each([&](int j, int at) {
    row.get(j, at, x);
#pragma unroll
    for (int n = 0; n < 2; ++n) {
      float weight[packet], bias[packet], out[packet];
      load_parameters<T>(a.weight[n], wide, at, weight);
      load_parameters<T>(a.bias[n], wide, at, bias);
#pragma unroll
      for (int i = 0; i < packet; ++i) out[i] = (x[i] - mean) * rstd * weight[i] + bias[i];
      store<packet>(static_cast<T*>(a.normed[n]) + r * a.width + at, out);
    }
  });
  if (threadIdx.x % 32 == 0) {
    a.mean[r] = mean;
    a.rstd[r] = rstd;
  }
}

template <class T, int packet, int held>
__global__ void __launch_bounds__(kThreads) pair_input_gradient(PairNormGradArgs a, bool wide) {
  const int64_t r = int64_t{blockIdx.x} * kWarps + threadIdx.x / 32;
  if (r >= a.rows) return;
  const Row<T, packet, held> row(a.x, r, a.width), one(a.grad[0], r, a.width), two(a.grad[1], r, a.width);
  const float mean = a.mean[r], rstd = a.rstd[r];
  float z[packet], dz[packet];
  const auto get = [&](int j, int at) {
    float other[packet], weight[2][packet];
    row.get(j, at, z);
    one.get(j, at, dz);
    two.get(j, at, other);
    load_parameters<T>(a.weight[0], wide, at, weight[0]);
    load_parameters<T>(a.weight[1], wide, at, weight[1]);
#pragma unroll
    for (int i = 0; i < packet; ++i) {
      z[i] = (z[i] - mean) * rstd;
      dz[i] = dz[i] * weight[0][i] + other[i] * weight[1][i];
    }
  };
  float sum = 0, product = 0;
  row.each([&](int j, int at) {
    get(j, at);
#pragma unroll
    for (int i = 0; i < packet; ++i) {
      sum += dz[i];
      product += dz[i] * z[i];
    }
  });
  const float mean_dz = warp_sum(sum) / static_cast<float>(a.width);
  const float mean_product = warp_sum(product) / static_cast<float>(a.width);
  row.each([&](int j, int at) {
    get(j, at);
#pragma unroll
    for (int i = 0; i < packet; ++i) z[i] = rstd * (dz[i] - mean_dz - z[i] * mean_product);
    store<packet>(static_cast<T*>(a.grad_x) + r * a.width + at, z);
  });
}

// Column sums of the parameters' gradients over a share of the rows: 32 columns a block, kRowLanes rows at a time.
constexpr int kRowLanes = 8;
constexpr int64_t kMaxShares = 128;

int64_t share_rows(int64_t rows) {
  const int64_t share = ceil_div(rows, kMaxShares);
  return share < 64 ? 64 : share;
}

template <class T>
__global__ void __launch_bounds__(32 * kRowLanes) pair_parameter_sums(PairNormGradArgs a, float* sums, int64_t share) {
  DOVE_SHARED(float, partial, [kRowLanes][4][32]);
  const int lane = threadIdx.x % 32, row_lane = threadIdx.x / 32;
  const int64_t column = int64_t{blockIdx.x} * 32 + lane;
  const int64_t first = int64_t{blockIdx.y} * share;
  const int64_t last = first + share < a.rows ? first + share : a.rows;
  float sum[4] = {0, 0, 0, 0};
  if (column < a.width) {
#pragma unroll 2
    for (int64_t r = first + row_lane; r < last; r += kRowLanes) {
      const int64_t at = r * a.width + column;
      const float z = (to_float(static_cast<const T*>(a.x)[at]) - a.mean[r]) * a.rstd[r];
#pragma unroll
      for (int n = 0; n < 2; ++n) {
        const float grad = to_float(static_cast<const T*>(a.grad[n])[at]);
        sum[2 * n] += grad * z;
        sum[2 * n + 1] += grad;
      }
    }
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) partial[row_lane][i][lane] = sum[i];
  __syncthreads();
  if (row_lane < 4 && column < a.width) {
    float total = 0;
    for (int i = 0; i < kRowLanes; ++i) total += partial[i][row_lane][lane];
    sums[(int64_t{blockIdx.y} * 4 + row_lane) * a.width + column] = total;
  }
}

__global__ void __launch_bounds__(kThreads)
    sum_shares(const float* sums, float* total, int64_t columns, int64_t shares) {
  const int64_t c = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (c >= columns) return;
  double sum = 0;
  for (int64_t i = 0; i < shares; ++i) sum += sums[i * columns + c];
  total[c] = static_cast<float>(sum);
}

__device__ inline float normal_cdf(float v) { return 0.5f * (1.0f + erff(v * 0.70710678118654752f)); }

template <class T, int packet, bool backward>
__global__ void __launch_bounds__(kThreads) gelu_rows(BiasGeluArgs a, bool wide) {
  const int64_t at = (int64_t{blockIdx.x} * kThreads + threadIdx.x) * packet;
  if (at >= a.rows * a.width) return;
  float x[packet], bias[packet], grad[packet];
  load<packet>(static_cast<const T*>(a.x) + at, x);
  load_parameters<T>(a.bias, wide, static_cast<int>(at % a.width), bias);
  if (backward) load<packet>(static_cast<const T*>(a.grad) + at, grad);
#pragma unroll
  for (int i = 0; i < packet; ++i) {
    const float v = x[i] + bias[i];
    const float phi = normal_cdf(v);
    // d gelu / dv = Phi(v) + v Phi'(v)
    x[i] = backward ? grad[i] * (phi + v * 0.39894228040143268f * expf(-0.5f * v * v)) : v * phi;
  }
  store<packet>(static_cast<T*>(a.out) + at, x);
}

template <class T, int packet>
__global__ void __launch_bounds__(kThreads) add_rows(AddBranchesArgs a, bool wide) {
  const int64_t at = (int64_t{blockIdx.x} * kThreads + threadIdx.x) * packet;
  if (at >= a.rows * a.width) return;
  const int column = static_cast<int>(at % a.width);
  float x[packet], one[packet], two[packet], bias_a[packet], bias_b[packet];
  load<packet>(static_cast<const T*>(a.x) + at, x);
  load<packet>(static_cast<const T*>(a.a) + at, one);
  load<packet>(static_cast<const T*>(a.b) + at, two);
  load_parameters<T>(a.bias_a, wide, column, bias_a);
  load_parameters<T>(a.bias_b, wide, column, bias_b);
#pragma unroll
  for (int i = 0; i < packet; ++i) x[i] += (one[i] + bias_a[i]) + (two[i] + bias_b[i]);
  store<packet>(static_cast<T*>(a.out) + at, x);
}

// Calls run(packet) with the widest packet that width and addresses allow.
template <class T, class Run>
Status with_packet(int64_t width, std::initializer_list<const void*> bases, Run run) {
  bool wide = width % kPacket<T> == 0;
  for (const void* base : bases) wide = wide && in_packets<T>(base, 0, 0);
  return wide ? run(std::integral_constant<int, kPacket<T>>{}) : run(std::integral_constant<int, 1>{});
}

// Calls run(T{}) with the type of `dtype`.
template <class Run>
Status with_type(DType dtype, DType parameters, int64_t rows, int64_t width, Run run) {
  if (parameters != DType::kFloat32 && parameters != dtype) return Status::kUnsupportedDType;
  if (rows < 0 || width < 1 || width > INT32_MAX) return Status::kUnsupportedShape;
  if (rows == 0) return Status::kOk;
  if (dtype == DType::kFloat32) return run(float{});
  if (dtype == DType::kBFloat16) return run(BFloat16{});
  if (dtype == DType::kFloat16) return run(Float16{});
  return Status::kUnsupportedDType;
}

bool is_wide(DType parameters) { return parameters == DType::kFloat32; }

dim3 blocks(int64_t count, int64_t of) { return dim3(static_cast<unsigned>(ceil_div(count, of))); }

template <class T>
Status run_pair_norm(const PairNormArgs& a, void* stream) {
  const auto bases = {a.x,
                      a.weight[0],
                      a.weight[1],
                      a.bias[0],
                      a.bias[1],
                      static_cast<const void*>(a.normed[0]),
                      static_cast<const void*>(a.normed[1])};
  return with_packet<T>(a.width, bases, [&](auto packet) {
    const int64_t held = ceil_div(a.width, 32 * packet);
    const dim3 grid = blocks(a.rows, kWarps);
    const bool wide = is_wide(a.parameters);
    if (held <= 1) return launch(normalise_pair<T, packet, 1>, grid, kThreads, 0, stream, a, wide);
    if (held <= 2) return launch(normalise_pair<T, packet, 2>, grid, kThreads, 0, stream, a, wide);
    if (held <= kMaxHeld) return launch(normalise_pair<T, packet, kMaxHeld>, grid, kThreads, 0, stream, a, wide);
    return launch(normalise_pair<T, packet, 0>, grid, kThreads, 0, stream, a, wide);
  });
}

template <class T>
Status run_pair_norm_backward(const PairNormGradArgs& a, void* stream) {
  const auto bases = {a.x, a.grad[0], a.grad[1], a.weight[0], a.weight[1], static_cast<const void*>(a.grad_x)};
  const bool wide = is_wide(a.parameters);
  Status status = with_packet<T>(a.width, bases, [&](auto packet) {
    const int64_t held = ceil_div(a.width, 32 * packet);
    const dim3 grid = blocks(a.rows, kWarps);
    if (held <= 1) return launch(pair_input_gradient<T, packet, 1>, grid, kThreads, 0, stream, a, wide);
    if (held <= 2) return launch(pair_input_gradient<T, packet, 2>, grid, kThreads, 0, stream, a, wide);
    return launch(pair_input_gradient<T, packet, 0>, grid, kThreads, 0, stream, a, wide);
  });
  if (status != Status::kOk) return status;
  const int64_t share = share_rows(a.rows), shares = ceil_div(a.rows, share);
  float* sums = static_cast<float*>(a.workspace);
  const dim3 grid(static_cast<unsigned>(ceil_div(a.width, 32)), static_cast<unsigned>(shares));
  status = launch(pair_parameter_sums<T>, grid, 32 * kRowLanes, 0, stream, a, sums, share);
  if (status != Status::kOk) return status;
  return launch(sum_shares, blocks(4 * a.width, kThreads), kThreads, 0, stream, static_cast<const float*>(sums),
                a.grad_parameters, 4 * a.width, shares);
}

template <bool backward>
Status run_bias_gelu(const BiasGeluArgs& a, void* stream) {
  return with_type(a.dtype, a.parameters, a.rows, a.width, [&](auto type) {
    using T = decltype(type);
    return with_packet<T>(a.width, {a.x, a.bias, a.grad, a.out}, [&](auto packet) {
      return launch(gelu_rows<T, packet, backward>, blocks(a.rows * a.width, kThreads * packet), kThreads, 0, stream, a,
                    is_wide(a.parameters));
    });
  });
}

}  // namespace

Status pair_norm(const PairNormArgs& a, void* stream) {
  return with_type(a.dtype, a.parameters, a.rows, a.width,
                   [&](auto type) { return run_pair_norm<decltype(type)>(a, stream); });
}

int64_t pair_norm_backward_workspace(const PairNormGradArgs& a) {
  return a.rows > 0 ? ceil_div(a.rows, share_rows(a.rows)) * 4 * a.width * static_cast<int64_t>(sizeof(float)) : 0;
}

Status pair_norm_backward(const PairNormGradArgs& a, void* stream) {
  if (a.workspace_bytes < pair_norm_backward_workspace(a)) return Status::kWorkspaceTooSmall;
  if (a.rows == 0) return clear(a.grad_parameters, 4 * a.width * sizeof(float), stream);
  return with_type(a.dtype, a.parameters, a.rows, a.width,
                   [&](auto type) { return run_pair_norm_backward<decltype(type)>(a, stream); });
}

Status bias_gelu(const BiasGeluArgs& a, void* stream) { return run_bias_gelu<false>(a, stream); }

Status bias_gelu_backward(const BiasGeluArgs& a, void* stream) { return run_bias_gelu<true>(a, stream); }

Status add_branches(const AddBranchesArgs& a, void* stream) {
  return with_type(a.dtype, a.parameters, a.rows, a.width, [&](auto type) {
    using T = decltype(type);
    return with_packet<T>(a.width, {a.x, a.a, a.b, a.bias_a, a.bias_b, a.out}, [&](auto packet) {
      return launch(add_rows<T, packet>, blocks(a.rows * a.width, kThreads * packet), kThreads, 0, stream, a,
                    is_wide(a.parameters));
    });
  });
}

}  // namespace dove::cuda
