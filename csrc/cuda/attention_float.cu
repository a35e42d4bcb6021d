// Attention in float32, forward and backward, in plain multiplications and additions: exact to float32 rounding.
#include "attention_float_tiles.h"
#include "attention_kernels.h"
#include "launch.h"

namespace dove::cuda {
namespace {

template <int D>
constexpr size_t kForwardBytes = (3 * kRows * kRowPitch<D> + kRows * kWeightPitch) * sizeof(float);

template <int D>
__global__ void __launch_bounds__(kThreads, 2) forward_kernel(AttentionArgs a) {
  Sequence s;
  if (!locate<kRows, false>(a, &s)) return;
  const int head = blockIdx.y, row = threadIdx.x / 4, part = threadIdx.x % 4, head_dim = static_cast<int>(a.head_dim);
  const int first = s.tile * kRows, query = first + row;
  float* const q_tile = reinterpret_cast<float*>(dynamic_shared());
  float* const k_tile = q_tile + kRows * kRowPitch<D>;
  float* const v_tile = k_tile + kRows * kRowPitch<D>;
  float* const weights = v_tile + kRows * kRowPitch<D> + row * kWeightPitch;
  load_tile<D>(q_tile, sequence_rows<const float>(a.q, s, s.first_q, head), a.q.stride_n, first, s.queries, head_dim);
  __syncthreads();
  if (a.rotary != nullptr) rotate_tile<D>(q_tile, a, s.position(first));
  __syncwarp();

  float o[D / 4] = {}, largest = -kInfinity, sum = 0.f;
  const int limit = s.limit(query), end = s.limit(min(first + kRows, s.queries) - 1);
  const float c = a.scale * kLog2E;
  for (int key = 0; key < end; key += kRows) {
    next_keys<D>(k_tile, v_tile, a, s, head, key);
    float p[kShare];
    dot_products<D>(p, q_tile + row * kRowPitch<D>, k_tile);
    float top = largest;
#pragma unroll
    for (int i = 0; i < kShare; ++i) {
      if (key + part + 4 * i >= limit) p[i] = -kInfinity;
      top = fmaxf(top, p[i]);
    }
    top = max_of_four(top);
    const float shift = top == -kInfinity ? 0.f : top;
    const float rescale = exp2f((largest - shift) * c);
    largest = top;
    sum *= rescale;
#pragma unroll
    for (int i = 0; i < kShare; ++i) {
      p[i] = exp2f((p[i] - shift) * c);
      sum += p[i];
      weights[part + 4 * i] = p[i];
    }
#pragma unroll
    for (int k = 0; k < D / 4; ++k) o[k] *= rescale;
    __syncwarp();
    weighted_sum<D>(o, weights, v_tile);
    __syncwarp();
  }
  sum = sum_of_four(sum);
  if (query >= s.queries) return;
  const float inverse = sum == 0.f ? 0.f : 1.f / sum;
  float* const out = sequence_rows<float>(a.out, s, s.first_q, head) + query * a.out.stride_n;
#pragma unroll
  for (int k = 0; k < D / 4; ++k) {
    if (part + 4 * k < head_dim) out[part + 4 * k] = o[k] * inverse;
  }
  if (part == 0) {
    query_scalars(a.lse, a, s, head)[query] = sum == 0.f ? -kInfinity : largest * a.scale + logf(sum);
  }
}

template <int D>
constexpr size_t kBackwardBytes = (4 * kRows * kRowPitch<D> + 2 * kRows * kWeightPitch) * sizeof(float);

template <int D>
__global__ void __launch_bounds__(kThreads, 2) queries_kernel(AttentionArgs a, float* delta_out) {
  Sequence s;
  if (!locate<kRows, false>(a, &s)) return;
  const int head = blockIdx.y, row = threadIdx.x / 4, part = threadIdx.x % 4, head_dim = static_cast<int>(a.head_dim);
  const int first = s.tile * kRows, query = first + row;
  float* const q_tile = reinterpret_cast<float*>(dynamic_shared());
  float* const g_tile = q_tile + kRows * kRowPitch<D>;
  float* const k_tile = g_tile + kRows * kRowPitch<D>;
  float* const v_tile = k_tile + kRows * kRowPitch<D>;
  float* const weights = v_tile + kRows * kRowPitch<D> + row * kWeightPitch;
  load_tile<D>(q_tile, sequence_rows<const float>(a.q, s, s.first_q, head), a.q.stride_n, first, s.queries, head_dim);
  load_tile<D>(g_tile, sequence_rows<const float>(a.grad_out, s, s.first_q, head), a.grad_out.stride_n, first,
               s.queries, head_dim);
  __syncthreads();
  if (a.rotary != nullptr) rotate_tile<D>(q_tile, a, s.position(first));
  __syncwarp();

  float delta = 0.f, lse2 = kInfinity;
  if (query < s.queries) {
    const float* const out = sequence_rows<const float>(a.out, s, s.first_q, head) + query * a.out.stride_n;
    for (int d = part; d < head_dim; d += 4) delta = fmaf(out[d], g_tile[row * kRowPitch<D> + d], delta);
    lse2 = query_scalars(a.lse, a, s, head)[query] * kLog2E;
  }
  delta = sum_of_four(delta);
  if (part == 0 && query < s.queries) query_scalars(delta_out, a, s, head)[query] = delta;

  float dq[D / 4] = {};
  const int limit = s.limit(query), end = s.limit(min(first + kRows, s.queries) - 1);
  const float c = a.scale * kLog2E;
  for (int key = 0; key < end; key += kRows) {
    next_keys<D>(k_tile, v_tile, a, s, head, key);
    float p[kShare], dp[kShare];
    dot_products<D>(p, q_tile + row * kRowPitch<D>, k_tile);
    dot_products<D>(dp, g_tile + row * kRowPitch<D>, v_tile);
#pragma unroll
    for (int i = 0; i < kShare; ++i) {
      const float weight = key + part + 4 * i < limit ? exp2f(p[i] * c - lse2) : 0.f;
      weights[part + 4 * i] = weight * (dp[i] - delta);
    }
    __syncwarp();
    weighted_sum<D>(dq, weights, k_tile);
    __syncwarp();
  }
  float* const grad = sequence_rows<float>(a.grad_q, s, s.first_q, head) + query * a.grad_q.stride_n;
  store_gradient<D>(grad, dq, a.scale, q_tile + row * kRowPitch<D>, a, a.rotary != nullptr, s.position(query),
                    query < s.queries);
}

template <int D>
__global__ void __launch_bounds__(kThreads, 2) keys_kernel(AttentionArgs a, const float* delta_in) {
  Sequence s;
  if (!locate<kRows, true>(a, &s)) return;
  const int head = blockIdx.y, row = threadIdx.x / 4, part = threadIdx.x % 4, head_dim = static_cast<int>(a.head_dim);
  const int first = s.tile * kRows, key = first + row;
  float* const k_tile = reinterpret_cast<float*>(dynamic_shared());
  float* const v_tile = k_tile + kRows * kRowPitch<D>;
  float* const q_tile = v_tile + kRows * kRowPitch<D>;
  float* const g_tile = q_tile + kRows * kRowPitch<D>;
  float* const weights = g_tile + kRows * kRowPitch<D> + row * kWeightPitch;
  float* const slopes = weights + kRows * kWeightPitch;
  load_tile<D>(k_tile, sequence_rows<const float>(a.k, s, s.first_k, head), a.k.stride_n, first, s.visible, head_dim);
  load_tile<D>(v_tile, sequence_rows<const float>(a.v, s, s.first_k, head), a.v.stride_n, first, s.visible, head_dim);
  __syncthreads();
  if (a.rotary != nullptr) rotate_tile<D>(k_tile, a, first);
  __syncwarp();

  float dk[D / 4] = {}, dv[D / 4] = {};
  const int end = first < s.visible ? s.queries : 0;
  const float c = a.scale * kLog2E;
  for (int query = s.first_query_of(first) / kRows * kRows; query < end; query += kRows) {
    __syncthreads();
    load_tile<D>(q_tile, sequence_rows<const float>(a.q, s, s.first_q, head), a.q.stride_n, query, s.queries, head_dim);
    load_tile<D>(g_tile, sequence_rows<const float>(a.grad_out, s, s.first_q, head), a.grad_out.stride_n, query,
                 s.queries, head_dim);
    __syncthreads();
    if (a.rotary != nullptr) {
      rotate_tile<D>(q_tile, a, s.position(query));
      __syncthreads();
    }
    float p[kShare], dp[kShare];
    dot_products<D>(p, k_tile + row * kRowPitch<D>, q_tile);
    dot_products<D>(dp, v_tile + row * kRowPitch<D>, g_tile);
#pragma unroll
    for (int i = 0; i < kShare; ++i) {
      const int column = query + part + 4 * i;
      const bool seen = column < s.queries && key < s.limit(column);
      const float lse2 = seen ? query_scalars(a.lse, a, s, head)[column] * kLog2E : 0.f;
      const float weight = seen ? exp2f(p[i] * c - lse2) : 0.f;
      weights[part + 4 * i] = weight;
      slopes[part + 4 * i] = seen ? weight * (dp[i] - query_scalars(delta_in, a, s, head)[column]) : 0.f;
    }
    __syncwarp();
    weighted_sum<D>(dv, weights, g_tile);
    weighted_sum<D>(dk, slopes, q_tile);
    __syncwarp();
  }
  float* const grad_k = sequence_rows<float>(a.grad_k, s, s.first_k, head) + key * a.grad_k.stride_n;
  float* const grad_v = sequence_rows<float>(a.grad_v, s, s.first_k, head) + key * a.grad_v.stride_n;
  store_gradient<D>(grad_k, dk, a.scale, k_tile + row * kRowPitch<D>, a, a.rotary != nullptr, key, key < s.keys);
  store_gradient<D>(grad_v, dv, 1.f, v_tile + row * kRowPitch<D>, a, false, 0, key < s.keys);
}

template <int D>
Status forward(const AttentionArgs& a, void* stream) {
  const dim3 grid(static_cast<unsigned>(slots<kRows>(a, false)), static_cast<unsigned>(a.heads));
  return launch(forward_kernel<D>, grid, dim3(kThreads), kForwardBytes<D>, stream, a);
}

template <int D>
Status backward(const AttentionArgs& a, float* delta, void* stream) {
  const auto heads = static_cast<unsigned>(a.heads);
  const dim3 q_grid(static_cast<unsigned>(slots<kRows>(a, false)), heads);
  const dim3 k_grid(static_cast<unsigned>(slots<kRows>(a, true)), heads);
  const Status status = launch(queries_kernel<D>, q_grid, dim3(kThreads), kBackwardBytes<D>, stream, a, delta);
  if (status != Status::kOk) return status;
  return launch(keys_kernel<D>, k_grid, dim3(kThreads), kBackwardBytes<D>, stream, a, delta);
}

}  // namespace

Status attention_forward_float(const AttentionArgs& a, void* stream) {
  if (a.head_dim <= 32) return forward<32>(a, stream);
  return a.head_dim <= 64 ? forward<64>(a, stream) : forward<128>(a, stream);
}

Status attention_backward_float(const AttentionArgs& a, float* delta, void* stream) {
  if (a.head_dim <= 32) return backward<32>(a, delta, stream);
  return a.head_dim <= 64 ? backward<64>(a, delta, stream) : backward<128>(a, delta, stream);
}

}  // namespace dove::cuda
