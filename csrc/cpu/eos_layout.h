// How the workspace of eos_scan and eos_probability is divided; the same for every instruction set.
#pragma once

#include "dove/eos.h"

namespace dove::cpu {
namespace {  // internal linkage: every translation unit, compiled for its own instruction set, keeps its own copy

struct EosLayout {
  static constexpr int64_t kMaxPanel = 32;     // positions side by side in the widest panel
  static constexpr int64_t kMaxBlock = 2048;   // positions that are held packed at a time
  static constexpr int64_t kChunkRows = 768;   // vocabulary rows of one partial sum of eos_probability
  static constexpr int64_t kMaxRefuters = 16;  // tiles of rows that are remembered for having refuted

  int64_t block;           // positions that are held packed at a time
  int64_t panel_width;     // hidden width, rounded up to even
  int64_t chunks;          // of the vocabulary
  float* packed;           // [block, panel_width] in panels
  float* eos_logit;        // [batch, positions]
  uint8_t* alive;          // [batch, positions]: nothing has refuted EOS here yet
  int32_t* cursor;         // [batch]: the next position to look at
  int64_t* member;         // [block]: which position of the flattened batch sits in a lane
  float* member_logit;     // [block]: its EOS logit
  uint32_t* panel_alive;   // [block]: a bit for each lane of a panel
  int64_t* panel_refuter;  // [block]: first row of the tile that refuted last
  float* chunk_max;        // [chunks, block]
  float* chunk_sum;        // [chunks, block]
  int64_t bytes;

  EosLayout(const EosArgs& a, void* base) {
    const int64_t all = (a.batch * a.positions + kMaxPanel - 1) / kMaxPanel * kMaxPanel;
    block = all < kMaxBlock ? all : kMaxBlock;
    panel_width = (a.width + 1) / 2 * 2;
    chunks = (a.vocabulary + kChunkRows - 1) / kChunkRows;
    bytes = 0;
    const auto take = [&](int64_t count, int64_t size) {
      void* here = reinterpret_cast<void*>(reinterpret_cast<uintptr_t>(base) + static_cast<uintptr_t>(bytes));
      bytes += (count * size + 63) / 64 * 64;
      return here;
    };
    packed = static_cast<float*>(take(block * panel_width, sizeof(float)));
    eos_logit = static_cast<float*>(take(all, sizeof(float)));
    alive = static_cast<uint8_t*>(take(all, 1));
    cursor = static_cast<int32_t*>(take(a.batch, sizeof(int32_t)));
    member = static_cast<int64_t*>(take(block, sizeof(int64_t)));
    member_logit = static_cast<float*>(take(block, sizeof(float)));
    panel_alive = static_cast<uint32_t*>(take(block, sizeof(uint32_t)));
    panel_refuter = static_cast<int64_t*>(take(block, sizeof(int64_t)));
    chunk_max = static_cast<float*>(take(chunks * block, sizeof(float)));
    chunk_sum = static_cast<float*>(take(chunks * block, sizeof(float)));
  }
};

}  // namespace
}  // namespace dove::cpu
