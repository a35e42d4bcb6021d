// Attention, forward, 16-bit operands on tensor cores. One block of four warps computes kM * 64 rows of queries of one
// head; keys and values pass through shared memory in tiles of 64, the next one on its way while one is used.
#include "attention_kernels.h"
#include "attention_tiles.h"
#include "launch.h"

namespace dove::cuda {
namespace {

constexpr int kKeys = 64;

template <int D, int kM>
constexpr size_t kForwardBytes = (64 * kM + 4 * kKeys) * kPitch<D> * 2;

template <class T, int D, int kM>
__global__ void __launch_bounds__(kThreads, 2) forward_kernel(AttentionArgs a) {
  constexpr int kRows = 64 * kM;
  Sequence s;
  if (!locate<kRows, false>(a, &s)) return;
  const int head = blockIdx.y, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int first = s.tile * kRows, head_dim = static_cast<int>(a.head_dim);

  T* const q_tile = reinterpret_cast<T*>(dynamic_shared());
  const KeyTiles<T, D, kKeys> walked(q_tile + kRows * kPitch<D>, a, s, head);
  const int end = s.limit(min(first + kRows, s.queries) - 1);
  const int tiles = (end + kKeys - 1) / kKeys;
  load_tile<T, D, kRows>(q_tile, sequence_rows<const T>(a.q, s, s.first_q, head), a.q.stride_n, first, s.queries,
                         head_dim);
  begin_walk<T, D, kRows>(q_tile, a, s.position(first), [&] {
    if (tiles > 0) walked.load(a, s, 0);
  });
  uint32_t q[kM][D / 16][4];
  int limits[kM][2];
#pragma unroll
  for (int m = 0; m < kM; ++m) {
    const int row = 16 * (warp * kM + m);
    load_left<T, D>(q[m], q_tile + row * kPitch<D>);
    limits[m][0] = s.limit(first + row + lane / 4);
    limits[m][1] = s.limit(first + row + lane / 4 + 8);
  }
  const int warp_first = first + 16 * kM * warp;
  const int least = s.limit(warp_first);  // keys that every row of this warp sees
  // Keys that some row sees: the warps of the upper half skip what lies under the mask for them alone.
  const int most = warp_first < s.queries ? s.limit(min(warp_first + 16 * kM, s.queries) - 1) : 0;

  // Of each row: the largest score and this lane's share of the sum of 2^((score - largest) * c).
  float o[kM][D / 8][4] = {}, largest[kM][2], sum[kM][2] = {};
#pragma unroll
  for (int m = 0; m < kM; ++m) largest[m][0] = largest[m][1] = -kInfinity;
  const float c = a.scale * kLog2E;
  for (int t = 0; t < tiles; ++t) {
    T* const k_tile = walked.key_tile(t);
    const T* const v_tile = walked.value_tile(t);
    cp_async_wait<0>();
    __syncthreads();  // the tile is there for all, and nobody reads the other one any more
    if (t + 1 < tiles) walked.load(a, s, t + 1);
    cp_async_commit();
    if (a.rotary != nullptr) {
      rotate_tile<T, D, kKeys>(k_tile, a, t * kKeys);
      __syncthreads();
    }
    if (t * kKeys >= most) continue;
    float p[kM][kKeys / 8][4] = {};
    multiply_transposed<T, D, kKeys, kM>(p, q, k_tile);
    if (least < (t + 1) * kKeys) {
#pragma unroll
      for (int m = 0; m < kM; ++m) {
#pragma unroll
        for (int n = 0; n < kKeys / 8; ++n) {
#pragma unroll
          for (int e = 0; e < 4; ++e) {
            const int key = t * kKeys + n * 8 + lane % 4 * 2 + e % 2;
            if (key >= limits[m][e / 2]) p[m][n][e] = -kInfinity;
          }
        }
      }
    }
#pragma unroll
    for (int m = 0; m < kM; ++m) {
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        float top = largest[m][r];
#pragma unroll
        for (int n = 0; n < kKeys / 8; ++n) top = fmaxf(top, fmaxf(p[m][n][2 * r], p[m][n][2 * r + 1]));
        top = fmaxf(top, __shfl_xor_sync(~0u, top, 1));
        top = fmaxf(top, __shfl_xor_sync(~0u, top, 2));
        // A row that has seen no key yet: any finite number does, -inf - -inf would not.
        const float shift = top == -kInfinity ? 0.f : top * c;
        const float rescale = fast_exp2(largest[m][r] * c - shift);
        largest[m][r] = top;
        sum[m][r] *= rescale;
#pragma unroll
        for (int n = 0; n < kKeys / 8; ++n) {
#pragma unroll
          for (int e = 2 * r; e < 2 * r + 2; ++e) {
            p[m][n][e] = fast_exp2(p[m][n][e] * c - shift);
            sum[m][r] += p[m][n][e];
          }
        }
#pragma unroll
        for (int n = 0; n < D / 8; ++n) {
          o[m][n][2 * r] *= rescale;
          o[m][n][2 * r + 1] *= rescale;
        }
      }
    }
    multiply<T, D, kKeys, kM>(o, p, v_tile);
  }

  // Through this warp's rows of the tile of queries, which only it has read, to whole 16-byte stores.
  T* const out_rows = sequence_rows<T>(a.out, s, s.first_q, head);
  float* const lse = query_scalars(a.lse, a, s, head);
  cp_async_wait<0>();
#pragma unroll
  for (int m = 0; m < kM; ++m) {
    const int row = 16 * (warp * kM + m);
    T* const staging = q_tile + row * kPitch<D>;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      float total = sum[m][r];
      total += __shfl_xor_sync(~0u, total, 1);
      total += __shfl_xor_sync(~0u, total, 2);
      const float inverse = total == 0.f ? 0.f : 1.f / total;
      const int i = lane / 4 + 8 * r;
#pragma unroll
      for (int n = 0; n < D / 8; ++n) {
        store_as(staging + i * kPitch<D> + n * 8 + lane % 4 * 2,
                 pack2<T>(o[m][n][2 * r] * inverse, o[m][n][2 * r + 1] * inverse));
      }
      if (lane % 4 == 0 && first + row + i < s.queries) {
        lse[first + row + i] = total == 0.f ? -kInfinity : largest[m][r] * a.scale + logf(total);
      }
    }
  }
  __syncwarp();
  for (int i = lane; i < 16 * kM * (D / 8); i += 32) {
    const int row = 16 * warp * kM + i / (D / 8), d = i % (D / 8) * 8;
    if (first + row < s.queries && d < head_dim) {
      store_as(out_rows + (first + row) * a.out.stride_n + d, load_as<uint4>(q_tile + row * kPitch<D> + d));
    }
  }
}

template <class T, int D, int kM>
Status start(const AttentionArgs& a, void* stream) {
  static_assert(kForwardBytes<D, kM> <= kSharedLimit);
  const dim3 grid(static_cast<unsigned>(slots<64 * kM>(a, false)), static_cast<unsigned>(a.heads));
  return launch(forward_kernel<T, D, kM>, grid, dim3(kThreads), kForwardBytes<D, kM>, stream, a);
}

// 128 rows a block read every tile half as often and use each fragment twice; 64 rows fill the device where there is
// little work. Both give a row the same sums in the same order.
template <class T, int D>
Status start(const AttentionArgs& a, void* stream) {
  if (slots<128>(a, false) * a.heads >= 2 * processors()) return start<T, D, 2>(a, stream);
  return start<T, D, 1>(a, stream);
}

template <class T>
Status start(const AttentionArgs& a, void* stream) {
  if (a.head_dim <= 32) return start<T, 32>(a, stream);
  if (a.head_dim <= 64) return start<T, 64>(a, stream);
  return start<T, 128, 1>(a, stream);
}

}  // namespace

Status attention_forward_tensor_cores(const AttentionArgs& a, void* stream) {
  return a.dtype == DType::kBFloat16 ? start<BFloat16>(a, stream) : start<Float16>(a, stream);
}

}  // namespace dove::cuda
