// eos_scan: the first position of each image at which EOS wins the arg-max, by refutation.
//
// EOS loses a position as soon as one row beats it, so most positions are settled by few rows:
//   1. all positions: the EOS logit, then the witness rows, a panel at a time, until every lane is refuted. One
//      task is one panel.
//   2. survivors, in order of position: in rounds of 32, 128, 512, ... positions over all images that have not
//      ended, each round against the whole vocabulary. The vocabulary is cut into growing segments; between two
//      segments the lanes still alive move together. One task is a chunk of rows against all panels of the
//      round; a lane is refuted if any task says so, so neither order nor threads matter. Tiles of rows that have
//      refuted are tried first in later rounds.
// A round costs at least one pass over the weights, which bounds what small rounds waste; where refutation never
// bites, the rounds together compute each (position, row) once, as a plain scan would.
// A vocabulary of a few rows is settled in step 1.
#include "../eos_layout.h"
#include "../parallel.h"
#include "dove/eos.h"
#include "eos_logits.h"

namespace dove::cpu::DOVE_ISA {
namespace {

constexpr int64_t kSmallVocabulary = 64;
constexpr int64_t kFirstRound = 32;
constexpr int64_t kRoundGrowth = 4;
constexpr int64_t kTaskRows = 8 * kTileRows;
constexpr int64_t kFirstSegment = 4 * kTaskRows;
constexpr int64_t kSegmentGrowth = 4;

// Multiply-adds for which waking one more thread pays: some 20 us of them.
constexpr int64_t kThreadWork = int64_t{1} << 21;
// What packing a position costs, in rows of the vocabulary.
constexpr int64_t kPackingRows = 16;

// Tiles of rows that refuted a position lately, the latest first.
struct Refuters {
  int64_t first_row[EosLayout::kMaxRefuters];
  int count = 0;

  void move_to_front(int64_t row) {
    int at = 0;
    while (at < count && first_row[at] != row) ++at;
    if (at == count) {
      if (count < EosLayout::kMaxRefuters) ++count;
      at = count - 1;
    }
    for (; at > 0; --at) first_row[at] = first_row[at - 1];
    first_row[0] = row;
  }
};

// A panel of the current round.
struct Panel {
  const float* values;
  const float* eos_logit;  // [kPanel]
  int lanes;
};

inline uint32_t bits(VecInt mask) {
#if defined(__AVX512F__)
  return _mm512_movepi32_mask(reinterpret_cast<__m512i>(mask));
#elif defined(__AVX2__)
  return static_cast<uint32_t>(_mm256_movemask_ps(reinterpret_cast<__m256>(mask)));
#else
  uint32_t result = 0;
  for (int i = 0; i < kLanes; ++i) result |= (mask[i] != 0 ? 1u : 0u) << i;
  return result;
#endif
}

inline uint32_t lane_bits(int lanes) { return lanes >= 32 ? ~0u : (1u << lanes) - 1; }

// Which of the lanes in `alive` remain after the given rows (ids[0..count), or first.. if ids is null). Written as
// negations so that a NaN on either side refutes.
template <class T>
uint32_t refute(const EosArgs& a, const int32_t* ids, int64_t first, int64_t count, const Panel& panel, uint32_t alive,
                int64_t* refuter) {
  Vec eos[kPanelVecs];
  for (int j = 0; j < kPanelVecs; ++j) eos[j] = load(panel.eos_logit + j * kLanes);
  for (int64_t begin = 0; begin < count && alive != 0; begin += kTileRows) {
    const int rows = static_cast<int>(count - begin < kTileRows ? count - begin : kTileRows);
    Vec sums[kTileRows][kPanelVecs];
    logits<T>(a, ids != nullptr ? ids + begin : nullptr, first + begin, rows, panel.values, panel.lanes, sums);
    uint32_t kept = alive;
    for (int j = 0; j * kLanes < panel.lanes; ++j) {
      VecInt beaten{};
      for (int r = 0; r < rows; ++r) {
        const int64_t row = ids != nullptr ? ids[begin + r] : first + begin + r;
        if (row < a.eos_id) beaten |= ~(sums[r][j] < eos[j]);
        if (row > a.eos_id) beaten |= ~(sums[r][j] <= eos[j]);
      }
      kept &= ~(bits(beaten) << (j * kLanes));
    }
    if (kept != alive) *refuter = first + begin;
    alive = kept;
  }
  return alive;
}

// Step 1.
template <class T>
void first_pass(const EosArgs& a, const EosLayout& w) {
  const int64_t all = a.batch * a.positions;
  const bool small = a.vocabulary <= kSmallVocabulary;
  const int32_t* ids = small || a.witness_count == 0 ? nullptr : a.witness;
  const int64_t count = small ? a.vocabulary : a.witness_count;
  // A thread packs into a panel of its own; there are never more of them than panels in a block.
  const int64_t panels = (all + kPanel - 1) / kPanel;
  const int64_t room = w.block / kPanel;
  const int64_t shares = 1 + all * a.width * (count + kPackingRows) / kThreadWork;
  const int64_t most = shares < room ? shares : room;
  parallel_for(panels, a.threads < most ? a.threads : static_cast<int>(most), [&](int64_t i) {
    float* values = w.packed + thread_index() * panel_size(w.panel_width);
    int64_t members[kPanel];
    const int lanes = static_cast<int>(all - i * kPanel < kPanel ? all - i * kPanel : kPanel);
    for (int lane = 0; lane < lanes; ++lane) members[lane] = i * kPanel + lane;
    pack_panel<T>(a, members, lanes, values);

    Vec sums[kTileRows][kPanelVecs];
    logits<T>(a, nullptr, a.eos_id, 1, values, lanes, sums);
    float eos_logit[kPanel] = {};
    uint32_t alive = 0;
    for (int j = 0; j * kLanes < lanes; ++j) {
      store(eos_logit + j * kLanes, sums[0][j]);
      alive |= bits(sums[0][j] == sums[0][j]) << (j * kLanes);
    }
    int64_t unused;
    alive = refute<T>(a, ids, 0, count, {values, eos_logit, lanes}, alive & lane_bits(lanes), &unused);
    for (int lane = 0; lane < lanes; ++lane) {
      w.eos_logit[members[lane]] = eos_logit[lane];
      w.alive[members[lane]] = (alive >> lane) & 1;
    }
  });
}

// The round's members, packed: `count` lanes in `panels` panels.
struct Round {
  int64_t count;
  int64_t panels;
};

template <class T>
void pack_round(const EosArgs& a, const EosLayout& w, Round& round) {
  round.panels = (round.count + kPanel - 1) / kPanel;
  parallel_for(round.panels, a.threads, [&](int64_t i) {
    const int64_t left = round.count - i * kPanel;
    const int lanes = static_cast<int>(left < kPanel ? left : kPanel);
    for (int lane = 0; lane < kPanel; ++lane) {
      w.member_logit[i * kPanel + lane] = lane < lanes ? w.eos_logit[w.member[i * kPanel + lane]] : 0;
    }
    w.panel_alive[i] = lane_bits(lanes);
    pack_panel<T>(a, w.member + i * kPanel, lanes, w.packed + i * panel_size(w.panel_width));
  });
}

// Marks the refuted members and closes the ranks; false when none is left.
template <class T>
bool compact_round(const EosArgs& a, const EosLayout& w, Round& round) {
  int64_t kept = 0;
  for (int64_t i = 0; i < round.count; ++i) {
    const bool alive = (w.panel_alive[i / kPanel] >> (i % kPanel)) & 1;
    w.alive[w.member[i]] = alive;
    kept += alive;
  }
  if (kept == 0) return false;
  // Moving pays when it empties a panel, or the half of the only one.
  const bool pays = (kept + kPanel - 1) / kPanel < round.panels || (kept <= kLanes && round.count > kLanes);
  if (!pays) return true;
  int64_t to = 0;
  for (int64_t i = 0; i < round.count; ++i) {
    if (w.alive[w.member[i]]) w.member[to++] = w.member[i];
  }
  round.count = kept;
  pack_round<T>(a, w, round);
  return true;
}

// Rows [begin, end) against every panel of the round.
template <class T>
void scan_rows(const EosArgs& a, const EosLayout& w, const Round& round, int64_t begin, int64_t end) {
  const int64_t tasks = (end - begin + kTaskRows - 1) / kTaskRows;
  parallel_for(tasks, a.threads, [&](int64_t task) {
    const int64_t first = begin + task * kTaskRows;
    const int64_t rows = end - first < kTaskRows ? end - first : kTaskRows;
    for (int64_t i = 0; i < round.panels; ++i) {
      const uint32_t alive = __atomic_load_n(&w.panel_alive[i], __ATOMIC_RELAXED);
      if (alive == 0) continue;
      const int64_t left = round.count - i * kPanel;
      const Panel panel{w.packed + i * panel_size(w.panel_width), w.member_logit + i * kPanel,
                        static_cast<int>(left < kPanel ? left : kPanel)};
      int64_t refuter = 0;
      const uint32_t kept = refute<T>(a, nullptr, first, rows, panel, alive, &refuter);
      if (kept == alive) continue;
      __atomic_fetch_and(&w.panel_alive[i], kept, __ATOMIC_RELAXED);
      __atomic_store_n(&w.panel_refuter[i], refuter, __ATOMIC_RELAXED);
    }
  });
}

template <class T>
void scan_round(const EosArgs& a, const EosLayout& w, Round& round, Refuters& refuters) {
  pack_round<T>(a, w, round);
  const Refuters known = refuters;
  for (int i = 0; i < known.count; ++i) {
    const int64_t first = known.first_row[i];
    scan_rows<T>(a, w, round, first, first + kTileRows < a.vocabulary ? first + kTileRows : a.vocabulary);
  }
  int64_t length = kFirstSegment;
  for (int64_t begin = 0; begin < a.vocabulary; begin += length, length *= kSegmentGrowth) {
    if (!compact_round<T>(a, w, round)) return;
    for (int64_t i = 0; i < round.panels; ++i) w.panel_refuter[i] = -1;
    scan_rows<T>(a, w, round, begin, begin + length < a.vocabulary ? begin + length : a.vocabulary);
    for (int64_t i = 0; i < round.panels; ++i) {
      if (w.panel_refuter[i] >= 0) refuters.move_to_front(w.panel_refuter[i]);
    }
  }
  compact_round<T>(a, w, round);
}

// Gathers the next members alive, about `target` in all, in equal shares of the images that have not ended.
int64_t gather(const EosArgs& a, const EosLayout& w, int64_t target) {
  int64_t open = 0;
  for (int64_t b = 0; b < a.batch; ++b) open += w.cursor[b] < a.positions;
  if (open == 0) return 0;
  if (target > w.block) target = w.block;
  const int64_t share = target > open ? target / open : 1;
  int64_t count = 0;
  for (int64_t b = 0; b < a.batch && count + share <= w.block; ++b) {
    int64_t taken = 0;
    for (; w.cursor[b] < a.positions && taken < share; ++w.cursor[b]) {
      const int64_t member = b * a.positions + w.cursor[b];
      if (!w.alive[member]) continue;
      w.member[count++] = member;
      ++taken;
    }
  }
  return count;
}

// Ends the images for which a position below the cursor has stood the whole vocabulary.
void settle(const EosArgs& a, const EosLayout& w) {
  for (int64_t b = 0; b < a.batch; ++b) {
    if (a.first[b] < a.positions) continue;
    for (int64_t m = 0; m < w.cursor[b]; ++m) {
      if (!w.alive[b * a.positions + m]) continue;
      a.first[b] = static_cast<int32_t>(m);
      w.cursor[b] = static_cast<int32_t>(a.positions);
      break;
    }
  }
}

template <class T>
void run(const EosArgs& a) {
  const EosLayout w(a, a.workspace);
  for (int64_t b = 0; b < a.batch; ++b) {
    a.first[b] = static_cast<int32_t>(a.positions);
    w.cursor[b] = 0;
  }
  if (a.batch * a.positions == 0) return;
  first_pass<T>(a, w);
  if (a.vocabulary <= kSmallVocabulary) {
    for (int64_t b = 0; b < a.batch; ++b) w.cursor[b] = static_cast<int32_t>(a.positions);
    settle(a, w);
    return;
  }
  Refuters refuters;
  for (int64_t target = a.first_round > 0 ? a.first_round : kFirstRound;; target *= kRoundGrowth) {
    Round round{gather(a, w, target), 0};
    if (round.count == 0) break;
    scan_round<T>(a, w, round, refuters);
    settle(a, w);
    if (target > w.block) target = w.block;
  }
}

}  // namespace

Status eos_scan(const EosArgs& a) {
  a.dtype == DType::kFloat32 ? run<float>(a) : run<BFloat16>(a);
  return Status::kOk;
}

}  // namespace dove::cpu::DOVE_ISA
