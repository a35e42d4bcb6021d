// Attention, backward, 16-bit operands on tensor cores; scores are computed anew from the log-sum-exp.
//
//   P = exp(scale S - lse)   dP = dO V^T   dS = P (dP - delta), delta = rowsum(dO O)
//   dQ = scale dS K          dV = P^T dO   dK = scale dS^T Q
//
// Two kernels, so that every sum has one owner and one order: `queries_kernel` owns 64 queries, walks over the keys,
// leaves dQ and delta; `keys_kernel` owns 64 keys, walks over the queries that see them, leaves dK and dV. That is
// seven products for the five of the formulas, without atomics and without partial sums in memory.
#include "attention_kernels.h"
#include "attention_tiles.h"
#include "launch.h"

namespace dove::cuda {
namespace {

constexpr int kOwned = 64;  // rows of the tile that a block owns, 16 a warp

// Rows of a step along the other side. With 128 dimensions, half as many leave room for the accumulators, and the
// tiles fit into shared memory.
template <int D>
constexpr int kStep = D == 128 ? 32 : 64;

template <int D>
constexpr size_t kQueriesBytes = (2 * kOwned + 4 * kStep<D>)*kPitch<D> * 2;

template <class T, int D>
__global__ void __launch_bounds__(kThreads, D == 128 ? 1 : 2) queries_kernel(AttentionArgs a, float* delta_out) {
  constexpr int kKeys = kStep<D>;
  Sequence s;
  if (!locate<kOwned, false>(a, &s)) return;
  const int head = blockIdx.y, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int first = s.tile * kOwned, row = 16 * warp, head_dim = static_cast<int>(a.head_dim);

  T* const q_tile = reinterpret_cast<T*>(dynamic_shared());
  T* const g_tile = q_tile + kOwned * kPitch<D>;
  const KeyTiles<T, D, kKeys> walked(g_tile + kOwned * kPitch<D>, a, s, head);
  const int end = s.limit(min(first + kOwned, s.queries) - 1);
  const int tiles = (end + kKeys - 1) / kKeys;
  load_tile<T, D, kOwned>(q_tile, sequence_rows<const T>(a.q, s, s.first_q, head), a.q.stride_n, first, s.queries,
                          head_dim);
  load_tile<T, D, kOwned>(g_tile, sequence_rows<const T>(a.grad_out, s, s.first_q, head), a.grad_out.stride_n, first,
                          s.queries, head_dim);
  // What is read past shared memory is asked for before the block waits for the tiles: two lanes a row of `out`.
  const int mine = threadIdx.x / 2;
  const bool mine_exists = first + mine < s.queries;
  const T* const out = sequence_rows<const T>(a.out, s, s.first_q, head) + (first + mine) * a.out.stride_n;
  uint4 out_values[D / 16];
#pragma unroll
  for (int i = 0; i < D / 16; ++i) {
    const int d = 16 * i + lane % 2 * 8;
    out_values[i] = mine_exists && d < head_dim ? load_as<uint4>(out + d) : make_uint4(0, 0, 0, 0);
  }
  float lse2[2];
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const int query = first + row + lane / 4 + 8 * r;
    lse2[r] = query < s.queries ? query_scalars(a.lse, a, s, head)[query] * kLog2E : kInfinity;
  }
  begin_walk<T, D, kOwned>(q_tile, a, s.position(first), [&] {
    if (tiles > 0) walked.load(a, s, 0);
  });

  // delta, then to the lanes that hold the row in fragments.
  float partial = 0.f;
#pragma unroll
  for (int j = 0; j < D / 16; ++j) {
    const uint4 x = out_values[j], y = load_as<uint4>(g_tile + mine * kPitch<D> + 16 * j + lane % 2 * 8);
    const uint32_t xs[4] = {x.x, x.y, x.z, x.w}, ys[4] = {y.x, y.y, y.z, y.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float2 u = unpack2<T>(xs[i]), v = unpack2<T>(ys[i]);
      partial += u.x * v.x + u.y * v.y;
    }
  }
  partial += __shfl_xor_sync(~0u, partial, 1);
  if (lane % 2 == 0 && mine_exists) query_scalars(delta_out, a, s, head)[first + mine] = partial;
  float delta[2];
  int limits[2];
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const int i = lane / 4 + 8 * r;
    delta[r] = __shfl_sync(~0u, partial, 2 * i);
    limits[r] = s.limit(first + row + i);
  }
  const int least = s.limit(first + row);

  float dq[1][D / 8][4] = {};
  const float c = a.scale * kLog2E;
  for (int t = 0; t < tiles; ++t) {
    T* const k_tile = walked.key_tile(t);
    const T* const v_tile = walked.value_tile(t);
    cp_async_wait<0>();
    __syncthreads();
    if (t + 1 < tiles) walked.load(a, s, t + 1);
    cp_async_commit();
    if (a.rotary != nullptr) {
      rotate_tile<T, D, kKeys>(k_tile, a, t * kKeys);
      __syncthreads();
    }
    float p[1][kKeys / 8][4] = {}, dp[kKeys / 8][4] = {};
    multiply_transposed<T, D, kKeys>(p[0], q_tile + row * kPitch<D>, k_tile);
    multiply_transposed<T, D, kKeys>(dp, g_tile + row * kPitch<D>, v_tile);
    const bool masked = least < (t + 1) * kKeys;
#pragma unroll
    for (int n = 0; n < kKeys / 8; ++n) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int key = t * kKeys + n * 8 + lane % 4 * 2 + e % 2;
        const float weight = masked && key >= limits[e / 2] ? 0.f : fast_exp2(p[0][n][e] * c - lse2[e / 2]);
        p[0][n][e] = weight * (dp[n][e] - delta[e / 2]);
      }
    }
    multiply<T, D, kKeys, 1>(dq, p, k_tile);
  }
  cp_async_wait<0>();
  __syncthreads();  // the tiles of keys become staging
  store_gradient<T, D>(sequence_rows<T>(a.grad_q, s, s.first_q, head), a.grad_q.stride_n, first + row, s.queries, dq[0],
                       a.scale, reinterpret_cast<float*>(walked.keys) + row * kFloatPitch<D>, a, a.rotary != nullptr,
                       s.position(first + row));
}

template <int D>
constexpr size_t kKeysBytes = (2 * kOwned + 4 * kStep<D>)*kPitch<D> * 2 + 4 * kStep<D> * sizeof(float);

template <class T, int D>
__global__ void __launch_bounds__(kThreads, D == 128 ? 1 : 2) keys_kernel(AttentionArgs a, const float* delta_in) {
  constexpr int kQueries = kStep<D>;
  Sequence s;
  if (!locate<kOwned, true>(a, &s)) return;
  const int head = blockIdx.y, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int first = s.tile * kOwned, row = 16 * warp, head_dim = static_cast<int>(a.head_dim);

  T* const k_tile = reinterpret_cast<T*>(dynamic_shared());
  T* const v_tile = k_tile + kOwned * kPitch<D>;
  T* const q_tiles = v_tile + kOwned * kPitch<D>;
  T* const g_tiles = q_tiles + 2 * kQueries * kPitch<D>;
  float* const lse_tiles = reinterpret_cast<float*>(g_tiles + 2 * kQueries * kPitch<D>);
  float* const delta_tiles = lse_tiles + 2 * kQueries;
  const T* const q_rows = sequence_rows<const T>(a.q, s, s.first_q, head);
  const T* const g_rows = sequence_rows<const T>(a.grad_out, s, s.first_q, head);
  const float* const lse_rows = query_scalars<const float>(a.lse, a, s, head);
  const float* const delta_rows = query_scalars(delta_in, a, s, head);
  const auto load_queries = [&](int t) {
    const int offset = t % 2 * kQueries * kPitch<D>;
    load_tile<T, D, kQueries>(q_tiles + offset, q_rows, a.q.stride_n, t * kQueries, s.queries, head_dim);
    load_tile<T, D, kQueries>(g_tiles + offset, g_rows, a.grad_out.stride_n, t * kQueries, s.queries, head_dim);
    // A row that does not exist gets zeros: its weight meets a gradient and a query of zeros.
    static_assert(kQueries <= kThreads);
    const int query = t * kQueries + threadIdx.x, at = t % 2 * kQueries + threadIdx.x;
    if (threadIdx.x < kQueries) {
      const bool valid = query < s.queries;
      cp_async4(lse_tiles + at, lse_rows + (valid ? query : 0), valid);
      cp_async4(delta_tiles + at, delta_rows + (valid ? query : 0), valid);
    }
  };

  const int from = s.first_query_of(first) / kQueries;
  const int tiles = first < s.visible ? (s.queries + kQueries - 1) / kQueries : 0;
  load_tile<T, D, kOwned>(k_tile, sequence_rows<const T>(a.k, s, s.first_k, head), a.k.stride_n, first, s.visible,
                          head_dim);
  load_tile<T, D, kOwned>(v_tile, sequence_rows<const T>(a.v, s, s.first_k, head), a.v.stride_n, first, s.visible,
                          head_dim);
  begin_walk<T, D, kOwned>(k_tile, a, first, [&] {
    if (from < tiles) load_queries(from);
  });

  float dk[1][D / 8][4] = {}, dv[1][D / 8][4] = {};
  const float c = a.scale * kLog2E;
  for (int t = from; t < tiles; ++t) {
    T* const q_tile = q_tiles + t % 2 * kQueries * kPitch<D>;
    const T* const g_tile = g_tiles + t % 2 * kQueries * kPitch<D>;
    const float* const lse = lse_tiles + t % 2 * kQueries;
    const float* const delta = delta_tiles + t % 2 * kQueries;
    cp_async_wait<0>();
    __syncthreads();
    if (t + 1 < tiles) load_queries(t + 1);
    cp_async_commit();
    if (a.rotary != nullptr) {
      rotate_tile<T, D, kQueries>(q_tile, a, s.position(t * kQueries));
      __syncthreads();
    }
    float p[1][kQueries / 8][4] = {};  // of keys by queries
    multiply_transposed<T, D, kQueries>(p[0], k_tile + row * kPitch<D>, q_tile);
    const bool masked = s.limit(t * kQueries) < first + kOwned;
#pragma unroll
    for (int n = 0; n < kQueries / 8; ++n) {
      const int column = n * 8 + lane % 4 * 2;
      const float2 l = load_as<float2>(lse + column);
      const float lse2[2] = {l.x * kLog2E, l.y * kLog2E};
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int key = first + row + lane / 4 + e / 2 * 8;
        const bool seen = !masked || key < s.limit(t * kQueries + column + e % 2);
        p[0][n][e] = seen ? fast_exp2(p[0][n][e] * c - lse2[e % 2]) : 0.f;
      }
    }
    multiply<T, D, kQueries, 1>(dv, p, g_tile);
    float dp[kQueries / 8][4] = {};
    multiply_transposed<T, D, kQueries>(dp, v_tile + row * kPitch<D>, g_tile);
#pragma unroll
    for (int n = 0; n < kQueries / 8; ++n) {
      const float2 shift = load_as<float2>(delta + n * 8 + lane % 4 * 2);
#pragma unroll
      for (int e = 0; e < 4; ++e) p[0][n][e] *= dp[n][e] - (e % 2 == 0 ? shift.x : shift.y);
    }
    multiply<T, D, kQueries, 1>(dk, p, q_tile);
  }
  cp_async_wait<0>();
  __syncthreads();  // the tiles of queries become staging
  float* const staging = reinterpret_cast<float*>(q_tiles) + row * kFloatPitch<D>;
  store_gradient<T, D>(sequence_rows<T>(a.grad_v, s, s.first_k, head), a.grad_v.stride_n, first + row, s.keys, dv[0],
                       1.f, staging, a, false, 0);
  store_gradient<T, D>(sequence_rows<T>(a.grad_k, s, s.first_k, head), a.grad_k.stride_n, first + row, s.keys, dk[0],
                       a.scale, staging, a, a.rotary != nullptr, first + row);
}

template <class T, int D>
Status start(const AttentionArgs& a, float* delta, void* stream) {
  static_assert(kOwned * kFloatPitch<D> * 4 <= 4 * kStep<D> * kPitch<D> * 2, "staging fits into the tiles");
  static_assert(kQueriesBytes<D> <= kSharedLimit && kKeysBytes<D> <= kSharedLimit);
  const auto heads = static_cast<unsigned>(a.heads);
  const dim3 q_grid(static_cast<unsigned>(slots<kOwned>(a, false)), heads);
  const dim3 k_grid(static_cast<unsigned>(slots<kOwned>(a, true)), heads);
  const Status status = launch(queries_kernel<T, D>, q_grid, dim3(kThreads), kQueriesBytes<D>, stream, a, delta);
  if (status != Status::kOk) return status;
  return launch(keys_kernel<T, D>, k_grid, dim3(kThreads), kKeysBytes<D>, stream, a, delta);
}

template <class T>
Status start(const AttentionArgs& a, float* delta, void* stream) {
  if (a.head_dim <= 32) return start<T, 32>(a, delta, stream);
  if (a.head_dim <= 64) return start<T, 64>(a, delta, stream);
  return start<T, 128>(a, delta, stream);
}

}  // namespace

Status attention_backward_tensor_cores(const AttentionArgs& a, float* delta, void* stream) {
  return a.dtype == DType::kBFloat16 ? start<BFloat16>(a, delta, stream) : start<Float16>(a, delta, stream);
}

}  // namespace dove::cuda
