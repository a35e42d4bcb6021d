// Attention backward: gradients of queries, keys and values from the saved log-sum-exp.
//
// With P = softmax and o, do the output and its gradient, row by row:
//   dV = P^T dO,   dS = P (dO V^T - rowsum(do o)),   dQ = scale dS K,   dK = scale dS^T Q
// P and dO V^T are recomputed tile by tile, so nothing of size N x N is kept.
//
// A task owns one (sequence, head) and all its gradient rows. Blocks of kBlockKeys keys are the outer loop and
// query tiles the inner one: dK and dV of the block are summed in place over the tiles, dQ over the blocks. The
// order of every sum is fixed, so the gradients do not depend on threads or batch. Splitting a head over threads
// would need either a second set of sums or recomputing the scores twice (7 products instead of 5); sequences
// times heads is parallelism enough for training.
#include "attention_pack.h"
#include "attention_plan.h"
#include "attention_sequence.h"
#include "attention_tiles.h"

#include "../parallel.h"

namespace dove::cpu::DOVE_ISA {
namespace {

constexpr int64_t kTileRows = 48;  // a multiple of kBlockRows, and even: rows are paired for P^T and dS^T
constexpr int64_t kBlockKeys = kPanel > 64 ? kPanel : 64;
constexpr int kKeyRows = 4;  // rows of a register block whose rows are keys: divides kBlockKeys
constexpr float kLog2e = 1.44269504088896340736f;

// A thread's workspace. "pairs" are rows of units whose steps run over positions; with one float per unit they
// are the same memory as the plain rows.
struct Buffers {
  Unit *key_panels, *value_panels;  // columns are keys, steps run over the head's dimensions
  Unit* key_pairs;
  Unit *query_rows, *grad_rows;  // of q and of do
  Unit *query_pairs, *grad_pairs;
  Unit* rows;                    // scratch of packing: kLanes rows
  float* grad_q;                 // [queries][dim]
  float *grad_k, *grad_v;        // [kBlockKeys][dim]
  float *delta, *lse;            // [queries]: rowsum(do o), and the log-sum-exp in powers of 2
  float *scores, *grad_scores;   // [kTileRows][kBlockKeys]
  Unit* grad_score_rows;         // dS for dQ
  Unit *p_pairs, *grad_s_pairs;  // P^T and dS^T: [kTileRows / kPerUnit][kBlockKeys]
};

template <class Units>
Buffers take_buffers(Scratch* scratch, int64_t keys, int64_t queries, int64_t dim) {
  constexpr bool paired = Units::kPerUnit == 2;
  const int64_t columns = round_up(keys, kBlockKeys), rows = round_up(queries, kTileRows);
  Buffers b;
  b.key_panels = scratch->take<Unit>(columns * dim);
  b.value_panels = scratch->take<Unit>(columns * dim);
  b.key_pairs = scratch->take<Unit>(columns * dim);
  b.query_rows = scratch->take<Unit>(rows * dim);
  b.grad_rows = scratch->take<Unit>(rows * dim);
  b.query_pairs = paired ? scratch->take<Unit>(rows / 2 * dim) : b.query_rows;
  b.grad_pairs = paired ? scratch->take<Unit>(rows / 2 * dim) : b.grad_rows;
  b.rows = scratch->take<Unit>(kLanes * row_units(dim));
  b.grad_q = scratch->take<float>(rows * dim);
  b.grad_k = scratch->take<float>(kBlockKeys * dim);
  b.grad_v = scratch->take<float>(kBlockKeys * dim);
  b.delta = scratch->take<float>(rows);
  b.lse = scratch->take<float>(rows);
  b.scores = scratch->take<float>(kTileRows * kBlockKeys);
  b.grad_scores = scratch->take<float>(kTileRows * kBlockKeys);
  b.grad_score_rows = paired ? scratch->take<Unit>(kTileRows * kBlockKeys / 2) : reinterpret_cast<Unit*>(b.grad_scores);
  b.p_pairs = paired ? scratch->take<Unit>(kTileRows * kBlockKeys / 2) : reinterpret_cast<Unit*>(b.scores);
  b.grad_s_pairs = paired ? scratch->take<Unit>(kTileRows * kBlockKeys / 2) : reinterpret_cast<Unit*>(b.grad_scores);
  return b;
}

// Rows 0..count in both layouts, rotated by their positions; rows up to `padded` become zero, so that whole tiles
// can be multiplied. Where `rows` is null only the pairs are kept, and `scratch` holds two rows.
template <class Units, class Element>
void pack_rows(const Rows<const Element>& from, int64_t count, int64_t padded, int64_t dim, const Rotary& rotary,
               int64_t position, Unit* scratch, Unit* rows, Unit* pairs) {
  const int64_t steps = dim / Units::kPerUnit;
  for (int64_t i = 0; i < padded; i += Units::kPerUnit) {
    Unit* packed = rows != nullptr ? rows + i * steps : Units::kPerUnit == 1 ? pairs + i * steps : scratch;
    for (int64_t n = 0; n < Units::kPerUnit; ++n) {
      if (i + n < count) {
        pack_row<Units>(from[i + n], dim, rotary, position + i + n, packed + n * steps);
      } else {
        std::memset(packed + n * steps, 0, steps * sizeof(Unit));
      }
    }
    if constexpr (Units::kPerUnit == 2) {
      const auto* halves = reinterpret_cast<const BFloat16*>(packed);
      for (int64_t d = 0; d < dim; d += kLanes) {
        store_bits(pairs + i / 2 * dim + d, pair_up(halves + d, halves + dim + d));
      }
    }
  }
}

// P and dS of rows [row, row + kTileRows) against keys [first, first + columns), in the layouts the three gradient
// products read.
template <class Units>
void softmax_gradient(const Buffers& t, const Sequence& s, int64_t row, int64_t first, int64_t columns,
                      float log2_scale) {
  const Vec scale = splat(log2_scale), minus_infinity = splat(-__builtin_inff());
  for (int64_t r = 0; r < kTileRows; r += Units::kPerUnit) {
    for (int64_t x = 0; x < columns; x += kLanes) {
      Vec p[Units::kPerUnit], grad[Units::kPerUnit];
      for (int i = 0; i < Units::kPerUnit; ++i) {
        const int64_t at = (r + i) * kBlockKeys + x, query = row + r + i;
        const int64_t visible = query < s.len_q ? s.visible(query) - first - x : 0;
        Vec exponent = fma(load(t.scores + at), scale, splat(-t.lse[query]));
        if (visible < kLanes) exponent = select_first(visible, exponent, minus_infinity);
        p[i] = exp2(exponent);
        grad[i] = p[i] * (load(t.grad_scores + at) - t.delta[query]);
      }
      if constexpr (Units::kPerUnit == 2) {
        const int64_t at = r / 2 * kBlockKeys + x;
        store_bits(t.p_pairs + at, pair_up(p[0], p[1]));
        store_bits(t.grad_s_pairs + at, pair_up(grad[0], grad[1]));
        for (int i = 0; i < 2; ++i) {
          Units::store_row(t.grad_score_rows + (r + i) * (kBlockKeys / 2), x, grad[i]);
        }
      } else {
        store(t.scores + r * kBlockKeys + x, p[0]);
        store(t.grad_scores + r * kBlockKeys + x, grad[0]);
      }
    }
  }
}

// One tile of queries against one block of keys: adds to dQ of the tile and to dK and dV of the block.
template <class Units>
void accumulate(const Buffers& t, const Sequence& s, int64_t row, int64_t first, int64_t keys, int64_t dim,
                float log2_scale) {
  constexpr int64_t per_unit = Units::kPerUnit;
  const int64_t steps = dim / per_unit, columns = round_up(keys, kLanes);
  const int64_t panel = first / kPanel * (steps * kPanel);
  for (int64_t r = 0; r < kTileRows; r += kBlockRows) {
    Product scores{t.query_rows + (row + r) * steps, steps,      1,      t.key_panels + panel, kPanel, steps,
                   t.scores + r * kBlockKeys,        kBlockKeys, nullptr};
    Product grads{t.grad_rows + (row + r) * steps, steps,      1,      t.value_panels + panel, kPanel, steps,
                  t.grad_scores + r * kBlockKeys,  kBlockKeys, nullptr};
    for (int64_t x = 0; x < columns; x += kPanel) {
      const int vectors = static_cast<int>(smaller(kPanel, columns - x) / kLanes);
      multiply<Units, Into::kOverwrite, kBlockRows>(scores, vectors);
      multiply<Units, Into::kOverwrite, kBlockRows>(grads, vectors);
      scores.b += steps * kPanel;
      scores.c += kPanel;
      grads.b += steps * kPanel;
      grads.c += kPanel;
    }
  }
  softmax_gradient<Units>(t, s, row, first, columns, log2_scale);

  for (int64_t r = 0; r < kTileRows; r += kBlockRows) {
    multiply_wide<Units, Into::kAdd, kBlockRows>(
        {t.grad_score_rows + r * (kBlockKeys / per_unit), kBlockKeys / per_unit, 1,
         t.key_pairs + first / per_unit * dim, dim, columns / per_unit, t.grad_q + (row + r) * dim, dim, nullptr},
        dim);
  }
  for (int64_t j = 0; j < keys; j += kKeyRows) {
    multiply_wide<Units, Into::kAdd, kKeyRows>({t.p_pairs + j, 1, kBlockKeys, t.grad_pairs + row / per_unit * dim, dim,
                                                kTileRows / per_unit, t.grad_v + j * dim, dim, nullptr},
                                               dim);
    multiply_wide<Units, Into::kAdd, kKeyRows>({t.grad_s_pairs + j, 1, kBlockKeys, t.query_pairs + row / per_unit * dim,
                                                dim, kTileRows / per_unit, t.grad_k + j * dim, dim, nullptr},
                                               dim);
  }
}

// Writes rows of sums, scaled and rotated back, as gradient rows.
template <class Element>
void store_rows(const float* sums, int64_t count, int64_t dim, float scale, const Rotary& rotary, int64_t position,
                const Rows<Element>& to, int64_t first) {
  for (int64_t i = 0; i < count; ++i) {
    Element* row = to[first + i];
    rotate_row(sums + i * dim, dim, rotary, position + i, -1.0f,
               [row, scale](int64_t d, Vec v) { store(row + d, v * scale); });
  }
}

template <class Element>
void pack_queries(const AttentionArgs& a, const Sequence& s, const Buffers& t, int64_t b, int64_t head) {
  typedef typename UnitsOf<Element>::Type Units;
  const Rows<const Element> q = rows_of<const Element>(a.q, b, s.start_q, head);
  const Rows<const Element> out = rows_of<const Element>(a.out, b, s.start_q, head);
  const Rows<const Element> grad = rows_of<const Element>(a.grad_out, b, s.start_q, head);
  const int64_t padded = round_up(s.len_q, kTileRows);
  pack_rows<Units>(q, s.len_q, padded, a.head_dim, {a.rotary, a.rotary_dim}, s.offset, t.rows, t.query_rows,
                   t.query_pairs);
  pack_rows<Units>(grad, s.len_q, padded, a.head_dim, {nullptr, 0}, 0, t.rows, t.grad_rows, t.grad_pairs);
  const float* lse = lse_of(a, s, b, head);
  for (int64_t i = 0; i < padded; ++i) {
    Vec sum{};
    if (i < s.len_q) {
      for (int64_t d = 0; d < a.head_dim; d += kLanes) sum = fma(load(out[i] + d), load(grad[i] + d), sum);
    }
    t.delta[i] = reduce_sum(sum);
    // Rows without keys (lse is -inf) and rows behind the sequence are masked as a whole.
    t.lse[i] = i < s.len_q && s.visible(i) > 0 ? lse[i] * kLog2e : 0.0f;
  }
}

template <class Element>
void run_head(const AttentionArgs& a, const Buffers& t, const Sequence& s, int64_t b, int64_t head) {
  typedef typename UnitsOf<Element>::Type Units;
  const int64_t dim = a.head_dim, queries = round_up(s.len_q, kTileRows);
  const int64_t keys = s.len_q > 0 ? s.visible(s.len_q - 1) : 0;
  const Rotary rotary{a.rotary, a.rotary_dim}, unrotated{nullptr, 0};
  const Rows<const Element> k = rows_of<const Element>(a.k, b, s.start_k, head);
  const Rows<const Element> v = rows_of<const Element>(a.v, b, s.start_k, head);
  const Rows<Element> grad_k = rows_of<Element>(a.grad_k, b, s.start_k, head);
  const Rows<Element> grad_v = rows_of<Element>(a.grad_v, b, s.start_k, head);
  pack_queries<Element>(a, s, t, b, head);
  pack_panels<Units>(k, keys, dim, rotary, t.rows, t.key_panels);
  pack_panels<Units>(v, keys, dim, unrotated, t.rows, t.value_panels);
  pack_rows<Units>(k, keys, round_up(keys, kBlockKeys), dim, rotary, 0, t.rows, nullptr, t.key_pairs);
  std::memset(t.grad_q, 0, queries * dim * sizeof(float));

  for (int64_t first = 0; first < keys; first += kBlockKeys) {
    const int64_t block = smaller(kBlockKeys, keys - first);
    std::memset(t.grad_k, 0, kBlockKeys * dim * sizeof(float));
    std::memset(t.grad_v, 0, kBlockKeys * dim * sizeof(float));
    for (int64_t row = 0; row < queries; row += kTileRows) {
      const int64_t seen = s.visible(smaller(row + kTileRows, s.len_q) - 1) - first;
      if (seen > 0) accumulate<Units>(t, s, row, first, smaller(block, seen), dim, a.scale * kLog2e);
    }
    store_rows(t.grad_k, block, dim, a.scale, rotary, first, grad_k, first);
    store_rows(t.grad_v, block, dim, 1.0f, unrotated, first, grad_v, first);
  }
  for (int64_t j = keys; j < s.len_k; ++j) {
    std::memset(grad_k[j], 0, dim * sizeof(Element));
    std::memset(grad_v[j], 0, dim * sizeof(Element));
  }
  store_rows(t.grad_q, s.len_q, dim, a.scale, rotary, s.offset, rows_of<Element>(a.grad_q, b, s.start_q, head), 0);
}

template <class Element>
void run(const AttentionArgs& a, const AttentionPlan& plan) {
  parallel_for(a.batch * a.heads, a.threads, [&](int64_t task) {
    const int64_t b = task / a.heads;
    Scratch scratch{reinterpret_cast<uintptr_t>(static_cast<char*>(a.workspace) + thread_index() * plan.thread_bytes)};
    const Buffers t =
        take_buffers<typename UnitsOf<Element>::Type>(&scratch, plan.max_keys, plan.max_queries, a.head_dim);
    run_head<Element>(a, t, sequence_of(a, b), b, task % a.heads);
  });
}

}  // namespace

Status plan_attention_backward(const AttentionPlanArgs& p) {
  Scratch scratch{0};
  const auto take = p.args->dtype == DType::kFloat32 ? take_buffers<FloatUnits> : take_buffers<UnitsOf<BFloat16>::Type>;
  take(&scratch, p.plan->max_keys, p.plan->max_queries, p.args->head_dim);
  p.plan->thread_bytes = static_cast<int64_t>(scratch.next);
  return Status::kOk;
}

Status run_attention_backward(const AttentionPlanArgs& p) {
  p.args->dtype == DType::kFloat32 ? run<float>(*p.args, *p.plan) : run<BFloat16>(*p.args, *p.plan);
  return Status::kOk;
}

}  // namespace dove::cpu::DOVE_ISA
