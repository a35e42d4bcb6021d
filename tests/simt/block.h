// One thread block on one CPU thread: a fiber for each CUDA thread and a scheduler that lets some warps run far
// ahead of others. Blocks run one after the other, or, from seed 4 on, some at a time by turns. This header is the
// machine; language.h and device.h are what kernels see of it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace simt {

constexpr int kWarp = 32;

struct Fault : std::runtime_error {
  using std::runtime_error::runtime_error;
};

struct Index {
  unsigned x = 0, y = 0, z = 0;
};

// A copy that cp.async has been asked for and that wait_group has not delivered yet.
struct PendingCopy {
  void* target;
  const void* source;
  int bytes;         // of the target, 4 to 16
  int source_bytes;  // the rest of the target becomes zero
};

struct Fiber {
  void* stack_pointer = nullptr;
  Index index;                                   // threadIdx
  const void* operands = nullptr;                // of the warp operation it waits in
  std::vector<PendingCopy> open;                 // not committed
  std::vector<std::vector<PendingCopy>> groups;  // committed, oldest first
};

struct Warp {
  uint32_t members = 0;  // lanes that exist
  uint32_t ready = 0;
  uint32_t done = 0;
  uint32_t at_barrier = 0;
  uint32_t waiting = 0;  // lanes that wait in the current warp operation
  uint32_t mask = 0;     // of that operation
  const char* operation = nullptr;
};

struct SharedVariable;

// One block under way.
struct Block {
  std::vector<Fiber> fibers;
  std::vector<Warp> warps;
  std::vector<int> order;  // warps, the one that runs ahead first
  int thread = 0;          // the running fiber
  int first_stack = 0;     // of the fibers
  int vote = 0;            // __syncthreads_or, _and, _count: of the last barrier
  int votes = 0;           // of the barrier that fills
  std::vector<std::pair<const SharedVariable*, unsigned char*>> variables;
  size_t static_used = 0;
  bool waits = false;  // for other blocks
  bool lags = false;   // its turn ended where blocks meet: others run far ahead
};

// What one launch is doing at this moment: the block whose turn it is, and what all blocks share.
struct Machine : Block {
  bool reversed = false;  // lanes run from 31 down
  bool pause = false;     // the turn of the block is over
  bool by_turns = false;
  void* scheduler_stack = nullptr;
  std::string error;
  std::function<void()> body;

  unsigned char* dynamic_shared = nullptr;
  size_t dynamic_size = 0;
  unsigned char* static_shared = nullptr;
  unsigned seed = 0;
  int until_refusal = -1;  // launches that are accepted before one is refused; negative: none is
};

extern Machine machine;

// Ends the launch with a message that names the block and the thread.
[[noreturn]] void fail(const std::string& what);

// Waits until every lane of `mask` has called it with the same operation; the last one runs `execute`.
void warp_operation(uint32_t mask, const char* operation, const void* operands, void (*execute)(Warp&, Fiber*));
// Waits for the whole block; `contribution` is summed over its threads and returned.
int block_barrier(int contribution);
// Lets other blocks run before this thread goes on, where blocks run by turns.
void end_turn();
// The same for a thread that cannot go on. Fails where there are none: none under way, or all of them wait too.
void wait_for_other_blocks();

// Why a launch cannot start, or null; one of a single thread stands for work that is no kernel.
const char* refusal(Index grid = {1, 1, 1}, Index block = {1, 1, 1}, size_t dynamic_shared = 0);
void run_grid(Index grid, Index block, size_t dynamic_shared, std::function<void()> body);

// A variable in shared memory. One object for each variable and template instance.
struct SharedVariable {
  void* get(size_t bytes, size_t align) const;
};

[[noreturn]] void fail_alignment(const char* what, size_t bytes);
[[noreturn]] void fail_outside_shared(const char* what);

// Checks that an access to shared memory by a hardware copy is inside and aligned.
inline void check_aligned(const void* address, size_t bytes, const char* what) {
  if (reinterpret_cast<uintptr_t>(address) % bytes != 0) fail_alignment(what, bytes);
}
inline void check_shared(const void* address, size_t bytes, const char* what) {
  const auto* p = static_cast<const unsigned char*>(address);
  const auto inside = [&](const unsigned char* from, size_t size) { return p >= from && p + bytes <= from + size; };
  if (inside(machine.dynamic_shared, machine.dynamic_size)) return;
  if (!inside(machine.static_shared, machine.static_used)) fail_outside_shared(what);
}

// --- Global memory: buffers that end at an unreadable page ------------------------------------------------
void* allocate(size_t bytes);  // filled with NaN
std::string release_all();     // "" or which buffer's edges were overwritten
// Runs `run` such that an access outside any buffer becomes a Fault.
void with_guards(const std::function<void()>& run);

}  // namespace simt
