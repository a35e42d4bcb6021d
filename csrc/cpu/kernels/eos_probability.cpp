// eos_probability: the softmax entry of EOS by a streaming log-sum-exp over the vocabulary.
//
// Positions are taken in blocks that are packed once. One task is a chunk of kChunkRows rows against one panel of
// positions and leaves (maximum, sum of exponentials relative to it) per position; the chunks of a position are
// merged in order. Chunks follow from the vocabulary alone and every position has a lane of its own, so neither
// threads nor batch show in the result.
#include "../eos_layout.h"
#include "../parallel.h"
#include "dove/eos.h"
#include "eos_logits.h"

namespace dove::cpu::DOVE_ISA {
namespace {

// The start of a running maximum: finite, so that a logit of -inf adds exp(-inf) = 0 and not NaN.
constexpr float kLowest = -3.4028234663852886e38f;

template <class T>
void chunk_sums(const EosArgs& a, const EosLayout& w, int64_t chunk, int64_t panel, int lanes) {
  const int64_t first = chunk * EosLayout::kChunkRows;
  const int64_t left = a.vocabulary - first;
  const int64_t count = left < EosLayout::kChunkRows ? left : EosLayout::kChunkRows;
  const float* values = w.packed + panel * panel_size(w.panel_width);
  Vec maximum[kPanelVecs], sum[kPanelVecs];
  for (int j = 0; j < kPanelVecs; ++j) {
    maximum[j] = splat(kLowest);
    sum[j] = Vec{};
  }
  for (int64_t begin = 0; begin < count; begin += kTileRows) {
    const int rows = static_cast<int>(count - begin < kTileRows ? count - begin : kTileRows);
    Vec sums[kTileRows][kPanelVecs];
    logits<T>(a, nullptr, first + begin, rows, values, lanes, sums);
    const int64_t eos_row = a.eos_id - first - begin;
    for (int j = 0; j * kLanes < lanes; ++j) {
      if (eos_row >= 0 && eos_row < rows) store(w.member_logit + panel * kPanel + j * kLanes, sums[eos_row][j]);
      Vec above = maximum[j];
      for (int r = 0; r < rows; ++r) above = at_least(sums[r][j], above);
      sum[j] *= exp(maximum[j] - above);
      for (int r = 0; r < rows; ++r) sum[j] += exp(sums[r][j] - above);
      maximum[j] = above;
    }
  }
  for (int j = 0; j * kLanes < lanes; ++j) {
    const int64_t at = chunk * w.block + panel * kPanel + j * kLanes;
    store(w.chunk_max + at, maximum[j]);
    store(w.chunk_sum + at, sum[j]);
  }
}

template <class T>
void run(const EosArgs& a) {
  const EosLayout w(a, a.workspace);
  const int64_t all = a.batch * a.positions;
  for (int64_t begin = 0; begin < all; begin += w.block) {
    const int64_t count = all - begin < w.block ? all - begin : w.block;
    const int64_t panels = (count + kPanel - 1) / kPanel;
    const auto lanes_of = [&](int64_t panel) {
      const int64_t left = count - panel * kPanel;
      return static_cast<int>(left < kPanel ? left : kPanel);
    };
    parallel_for(panels, a.threads, [&](int64_t panel) {
      int64_t members[kPanel];
      const int lanes = lanes_of(panel);
      for (int lane = 0; lane < lanes; ++lane) members[lane] = begin + panel * kPanel + lane;
      pack_panel<T>(a, members, lanes, w.packed + panel * panel_size(w.panel_width));
    });
    // Panels of one chunk follow each other: its rows come from memory once.
    parallel_for(w.chunks * panels, a.threads,
                 [&](int64_t i) { chunk_sums<T>(a, w, i / panels, i % panels, lanes_of(i % panels)); });
    for (int64_t i = 0; i < count; ++i) {
      float maximum = w.chunk_max[i];
      for (int64_t c = 1; c < w.chunks; ++c) {
        const float other = w.chunk_max[c * w.block + i];
        if (other > maximum) maximum = other;
      }
      double sum = 0;
      for (int64_t c = 0; c < w.chunks; ++c) {
        sum += w.chunk_sum[c * w.block + i] * __builtin_expf(w.chunk_max[c * w.block + i] - maximum);
      }
      a.maximum[begin + i] = maximum;
      a.sum[begin + i] = static_cast<float>(sum);
      a.probability[begin + i] = static_cast<float>(__builtin_expf(w.member_logit[i] - maximum) / sum);
    }
  }
}

}  // namespace

Status eos_probability(const EosArgs& a) {
  a.dtype == DType::kFloat32 ? run<float>(a) : run<BFloat16>(a);
  return Status::kOk;
}

}  // namespace dove::cpu::DOVE_ISA
