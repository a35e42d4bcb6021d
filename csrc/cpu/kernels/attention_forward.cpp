// Attention forward: online softmax over blocks of keys, scores never leave the first cache level.
//
// A task owns one (sequence, head) and every parts-th query tile of it, and so every output row it writes. It
// first packs the keys (rotated, transposed) and values that its queries see into its thread's workspace; a
// head of 512 x 64 floats is 256 KiB and stays in the second cache level for all query tiles. Packing again in
// each part costs a few percent of the products and needs no barrier between two phases.
//
// A tile is kTileBlocks register blocks of kBlockRows queries. For every kBlockKeys keys each register block
// computes its scores, the softmax and its share of P V. Only the columns up to the last query of the block are
// computed, so causality halves the work at the granularity of one vector, not of a tile. The order of a row's
// sums depends only on its own keys: neither batch, threads nor the other queries change it.
#include "attention_pack.h"
#include "attention_plan.h"
#include "attention_sequence.h"
#include "attention_tiles.h"

#include "../parallel.h"

#include <math.h>

namespace dove::cpu::DOVE_ISA {
namespace {

constexpr int kTileBlocks = 4;
constexpr int64_t kTileRows = kTileBlocks * kBlockRows;
constexpr int64_t kBlockKeys = 2 * (kPanel > 64 ? kPanel : 64);
constexpr float kLog2e = 1.44269504088896340736f;
// The running maximum of a row that has seen no key: finite, so that subtracting it from -inf is no NaN.
constexpr float kNoScore = -1e30f;

// A thread's workspace.
struct Buffers {
  Unit* keys;      // panels
  Unit* values;    // rows
  Unit* rows;      // scratch of pack_panels
  Unit* queries;   // [kTileRows][steps]
  float* scores;   // [kBlockRows][kBlockKeys], then probabilities in units
  float* out;      // [kTileRows][dim]
  float* sums;     // [kTileRows][kLanes]
  float* maxima;   // [kTileRows]
  float* rescale;  // [kBlockRows], rounded up to vectors
};

Buffers take_buffers(Scratch* scratch, int64_t keys, int64_t dim) {
  Buffers b;
  b.keys = scratch->take<Unit>(round_up(keys, kPanel) * dim);
  b.values = scratch->take<Unit>(round_up(keys, 2) * dim);
  b.rows = scratch->take<Unit>(kLanes * row_units(dim));
  b.queries = scratch->take<Unit>(kTileRows * dim);
  b.scores = scratch->take<float>(kBlockRows * kBlockKeys);
  b.out = scratch->take<float>(kTileRows * dim);
  b.sums = scratch->take<float>(kTileRows * kLanes);
  b.maxima = scratch->take<float>(kTileRows);
  b.rescale = scratch->take<float>(round_up(kBlockRows, kLanes));
  return b;
}

// Turns a block of scores into probabilities relative to the new row maxima, and says by how much what was summed
// so far has to shrink. `visible`: keys of this block that each row sees; `log2_scale` turns scores into powers of 2.
template <class Units>
void softmax_block(const Buffers& t, int64_t row, const int64_t* visible, int64_t keys, float log2_scale) {
  const int64_t columns = round_up(keys, kLanes);
  const float minus_infinity = -__builtin_inff();
  for (int r = 0; r < kBlockRows; ++r) {
    float* scores = t.scores + r * kBlockKeys;
    for (int64_t x = smaller(visible[r], columns) / kLanes * kLanes; x < columns; x += kLanes) {
      store(scores + x, select_first(visible[r] - x, load(scores + x), splat(minus_infinity)));
    }
    Vec maximum = splat(t.maxima[row + r]);
    for (int64_t x = 0; x < columns; x += kLanes) maximum = at_least(load(scores + x), maximum);
    const float now = reduce_max(maximum);
    t.rescale[r] = (t.maxima[row + r] - now) * log2_scale;
    t.maxima[row + r] = now;
  }
  for (int r = 0; r < kBlockRows; r += kLanes) store(t.rescale + r, exp2(load(t.rescale + r)));
  for (int r = 0; r < kBlockRows; ++r) {
    float* scores = t.scores + r * kBlockKeys;
    const Vec scale = splat(log2_scale), shift = splat(-t.maxima[row + r] * log2_scale);
    Vec sum = load(t.sums + (row + r) * kLanes) * splat(t.rescale[r]);
    for (int64_t x = 0; x < columns; x += kLanes) {
      const Vec p = exp2(fma(load(scores + x), scale, shift));
      sum += p;
      Units::store_row(reinterpret_cast<Unit*>(scores), x, p);  // in place: never ahead of the reading
    }
    store(t.sums + (row + r) * kLanes, sum);
  }
}

// One register block of queries against keys [first, first + keys).
template <class Units>
void attend(const Buffers& t, int64_t row, int64_t first, int64_t keys, const int64_t* visible, int64_t dim,
            float log2_scale) {
  const int64_t steps = dim / Units::kPerUnit;
  Product scores{t.queries + row * steps,
                 steps,
                 1,
                 t.keys + first / kPanel * (steps * kPanel),
                 kPanel,
                 steps,
                 t.scores,
                 kBlockKeys,
                 nullptr};
  for (int64_t x = 0; x < keys; x += kPanel) {
    multiply<Units, Into::kOverwrite, kBlockRows>(
        scores, static_cast<int>(smaller(kPanel, round_up(keys - x, kLanes)) / kLanes));
    scores.b += steps * kPanel;
    scores.c += kPanel;
  }
  softmax_block<Units>(t, row, visible, keys, log2_scale);
  const Product weighted{reinterpret_cast<const Unit*>(t.scores),
                         kBlockKeys,
                         1,
                         t.values + first / Units::kPerUnit * dim,
                         dim,
                         (keys + Units::kPerUnit - 1) / Units::kPerUnit,
                         t.out + row * dim,
                         dim,
                         t.rescale};
  multiply_wide<Units, Into::kRescale, kBlockRows>(weighted, dim);
}

template <class Element>
void attend_tile(const AttentionArgs& a, const Sequence& s, const Buffers& t, const Rows<const Element>& q,
                 const Rows<Element>& out, float* lse, int64_t tile) {
  typedef typename UnitsOf<Element>::Type Units;
  const int64_t dim = a.head_dim, steps = dim / Units::kPerUnit;
  const int64_t first_query = tile * kTileRows, queries = smaller(kTileRows, s.len_q - first_query);
  const Rotary rotary{a.rotary, a.rotary_dim};
  for (int64_t i = 0; i < round_up(queries, kBlockRows); ++i) {
    if (i < queries) {
      pack_row<Units>(q[first_query + i], dim, rotary, s.offset + first_query + i, t.queries + i * steps);
    } else {
      std::memset(t.queries + i * steps, 0, steps * sizeof(Unit));
    }
    t.maxima[i] = kNoScore;
  }
  std::memset(t.out, 0, kTileRows * dim * sizeof(float));
  std::memset(t.sums, 0, kTileRows * kLanes * sizeof(float));

  const int64_t last_key = s.visible(first_query + queries - 1);
  for (int64_t first = 0; first < last_key; first += kBlockKeys) {
    for (int64_t block = 0; block < queries; block += kBlockRows) {
      int64_t visible[kBlockRows];
      for (int r = 0; r < kBlockRows; ++r) {
        visible[r] = larger(0, s.visible(first_query + smaller(block + r, queries - 1)) - first);
      }
      const int64_t keys = smaller(kBlockKeys, visible[kBlockRows - 1]);
      if (keys > 0) attend<Units>(t, block, first, keys, visible, dim, a.scale * kLog2e);
    }
  }

  for (int64_t i = 0; i < queries; ++i) {
    const float sum = reduce_sum(load(t.sums + i * kLanes));
    const bool blind = s.visible(first_query + i) == 0;
    const Vec inverse = splat(blind ? 0.0f : 1.0f / sum);
    for (int64_t d = 0; d < dim; d += kLanes) store(out[first_query + i] + d, load(t.out + i * dim + d) * inverse);
    lse[first_query + i] = blind ? -__builtin_inff() : t.maxima[i] * a.scale + logf(sum);
  }
}

template <class Element>
void run(const AttentionArgs& a, const AttentionPlan& plan) {
  typedef typename UnitsOf<Element>::Type Units;
  parallel_for(a.batch * a.heads * plan.parts, a.threads, [&](int64_t task) {
    const int64_t part = task % plan.parts, head = task / plan.parts % a.heads, b = task / plan.parts / a.heads;
    const Sequence s = sequence_of(a, b);
    const int64_t tiles = round_up(s.len_q, kTileRows) / kTileRows;
    // From the last tile down: under a causal mask the late ones are the long ones.
    const int64_t last_tile = tiles - 1 - part;
    if (last_tile < 0) return;

    Scratch scratch{reinterpret_cast<uintptr_t>(static_cast<char*>(a.workspace) + thread_index() * plan.thread_bytes)};
    const Buffers t = take_buffers(&scratch, plan.max_keys, a.head_dim);
    const int64_t keys = s.visible(smaller((last_tile + 1) * kTileRows, s.len_q) - 1);
    const Rows<const Element> k = rows_of<const Element>(a.k, b, s.start_k, head);
    const Rows<const Element> v = rows_of<const Element>(a.v, b, s.start_k, head);
    pack_panels<Units>(k, keys, a.head_dim, {a.rotary, a.rotary_dim}, t.rows, t.keys);
    pack_pairs<Units>(v, keys, a.head_dim, t.values);
    for (int64_t tile = last_tile; tile >= 0; tile -= plan.parts) {
      attend_tile<Element>(a, s, t, rows_of<const Element>(a.q, b, s.start_q, head),
                           rows_of<Element>(a.out, b, s.start_q, head), lse_of(a, s, b, head), tile);
    }
  });
}

}  // namespace

Status plan_attention(const AttentionPlanArgs& p) {
  Scratch scratch{0};
  take_buffers(&scratch, p.plan->max_keys, p.args->head_dim);
  p.plan->thread_bytes = static_cast<int64_t>(scratch.next);
  // Heads and sequences are the natural tasks; queries are split only where those leave threads idle.
  const int64_t wanted = 2 * p.args->threads, tasks = larger(1, p.args->batch * p.args->heads);
  p.plan->parts = tasks >= wanted ? 1 : (wanted + tasks - 1) / tasks;
  return Status::kOk;
}

Status run_attention(const AttentionPlanArgs& p) {
  p.args->dtype == DType::kFloat32 ? run<float>(*p.args, *p.plan) : run<BFloat16>(*p.args, *p.plan);
  return Status::kOk;
}

}  // namespace dove::cpu::DOVE_ISA
