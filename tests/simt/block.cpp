#include "block.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstring>
#include <numeric>
#include <random>

#if !defined(__x86_64__)
#include <ucontext.h>
#endif

namespace simt {

Machine machine;
Index block_index, block_dim, grid_dim;

namespace {

constexpr size_t kStack = 256 * 1024;
constexpr size_t kGuard = 64 * 1024;  // a multiple of every page size in use
constexpr int kMaxThreads = 1024;
constexpr size_t kMaxDynamic = 227 * 1024;
constexpr size_t kMaxStatic = 48 * 1024;
constexpr size_t kBlocksByTurns = 3;

alignas(128) unsigned char static_memory[kMaxStatic];

unsigned char* stacks() {
  static unsigned char* memory = [] {
    void* p =
        mmap(nullptr, kStack * kMaxThreads, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED) throw Fault("no memory for the stacks of a block");
    for (int t = 0; t < kMaxThreads; ++t) mprotect(static_cast<char*>(p) + t * kStack, kGuard, PROT_NONE);
    return static_cast<unsigned char*>(p);
  }();
  return memory;
}

// The end of dynamic shared memory, with a page behind it that cannot be touched.
unsigned char* dynamic_end() {
  static unsigned char* end = [] {
    void* p = mmap(nullptr, kMaxDynamic + 2 * kGuard, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED) throw Fault("no memory for the shared memory of a block");
    auto* last = static_cast<unsigned char*>(p) + (kMaxDynamic + kGuard) / kGuard * kGuard;
    mprotect(last, kGuard, PROT_NONE);
    return last;
  }();
  return end;
}

void finish_thread();

[[noreturn]] void entry() {
  machine.body();
  finish_thread();
  __builtin_unreachable();
}

#if defined(__x86_64__)
extern "C" void simt_switch(void** save, void* load) asm("simt_switch");
asm(R"(
.text
.type simt_switch, @function
simt_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
)");

void* new_stack(int thread) {
  auto** top = reinterpret_cast<void**>(stacks() + kStack * (machine.first_stack + thread + 1));
  *--top = nullptr;  // as after a call: the stack is 8 off a multiple of 16 at entry
  *--top = reinterpret_cast<void*>(&entry);
  for (int i = 0; i < 6; ++i) *--top = nullptr;
  return top;
}

inline void switch_to(void** save, void* load) { simt_switch(save, load); }
#else
// A context for each fiber, and one for the scheduler behind them; slower than the above by its system calls.
ucontext_t contexts[kMaxThreads + 1];

void* new_stack(int thread) {
  ucontext_t& context = contexts[machine.first_stack + thread];
  getcontext(&context);
  context.uc_stack.ss_sp = stacks() + kStack * (machine.first_stack + thread) + kGuard;
  context.uc_stack.ss_size = kStack - kGuard;
  context.uc_link = nullptr;
  makecontext(&context, reinterpret_cast<void (*)()>(&entry), 0);
  return &context;
}

void switch_to(void** save, void* load) {
  if (save == &machine.scheduler_stack) *save = &contexts[kMaxThreads];  // a fiber's own is there from the start
  swapcontext(static_cast<ucontext_t*>(*save), static_cast<ucontext_t*>(load));
}
#endif

inline Warp& current_warp() { return machine.warps[machine.thread / kWarp]; }
inline uint32_t current_lane() { return 1u << (machine.thread % kWarp); }

// Always the first warp of the order that can run, and of it always the first lane.
inline bool pick() {
  for (int w : machine.order) {
    const uint32_t ready = machine.warps[w].ready;
    if (ready == 0) continue;
    machine.thread = w * kWarp + (machine.reversed ? 31 - __builtin_clz(ready) : __builtin_ctz(ready));
    return true;
  }
  return false;
}

// The running fiber waits: the next one goes on, or the scheduler where there is none or the turn is over.
void next_fiber() {
  Fiber& own = machine.fibers[machine.thread];
  if (!machine.error.empty() || machine.pause || !pick()) return switch_to(&own.stack_pointer, machine.scheduler_stack);
  Fiber& next = machine.fibers[machine.thread];
  if (&next != &own) switch_to(&own.stack_pointer, next.stack_pointer);
}

void finish_thread() {
  current_warp().ready &= ~current_lane();
  current_warp().done |= current_lane();
  next_fiber();
}

void release_barrier_if_complete() {
  for (const Warp& w : machine.warps) {
    if (w.at_barrier != w.members) return;
  }
  for (Warp& w : machine.warps) {
    w.at_barrier = 0;
    w.ready = w.members;
  }
  machine.pause = machine.by_turns;
}

std::string where_all_wait() {
  std::string text = "the block cannot go on:";
  for (size_t i = 0; i < machine.warps.size(); ++i) {
    const Warp& w = machine.warps[i];
    char line[160];
    snprintf(line, sizeof line, " warp %zu: done %08x, at __syncthreads %08x, in %s %08x of %08x;", i, w.done,
             w.at_barrier, w.operation ? w.operation : "no operation", w.waiting, w.mask);
    text += line;
  }
  return text;
}

void begin_block(unsigned serial, int threads, int first_stack) {
  machine.fibers.resize(threads);
  machine.warps.resize((threads + kWarp - 1) / kWarp);
  machine.first_stack = first_stack;
  machine.vote = machine.votes = 0;
  machine.variables.clear();
  machine.static_used = 0;
  std::memset(machine.dynamic_shared, 0xff, machine.dynamic_size);  // NaN in every format
  for (size_t w = 0; w < machine.warps.size(); ++w) {
    const int lanes = std::min(kWarp, threads - static_cast<int>(w) * kWarp);
    machine.warps[w] = {};
    machine.warps[w].members = machine.warps[w].ready = lanes == kWarp ? ~0u : (1u << lanes) - 1;
  }
  machine.order.resize(machine.warps.size());
  std::iota(machine.order.begin(), machine.order.end(), 0);
  machine.reversed = machine.seed % 2 == 1;
  if (machine.seed == 1) std::reverse(machine.order.begin(), machine.order.end());
  if (machine.seed > 1) {
    std::mt19937 random(machine.seed * 7919 + serial);
    std::shuffle(machine.order.begin(), machine.order.end(), random);
  }
  for (int t = 0; t < threads; ++t) {
    Fiber& fiber = machine.fibers[t];
    fiber.open.clear();
    fiber.groups.clear();
    fiber.index = {t % block_dim.x, t / block_dim.x % block_dim.y, t / block_dim.x / block_dim.y};
    fiber.stack_pointer = new_stack(t);
  }
}

// Whether the block has come to its end; otherwise its turn is over.
bool run_block() {
  machine.pause = false;
  while (machine.error.empty()) {
    if (machine.pause) return false;
    if (pick()) {
      switch_to(&machine.scheduler_stack, machine.fibers[machine.thread].stack_pointer);
    } else {
      const bool all_done =
          std::all_of(machine.warps.begin(), machine.warps.end(), [](const Warp& w) { return w.done == w.members; });
      if (all_done) return true;
      machine.error = where_all_wait();
    }
  }
  return true;
}

void set_block_index(uint64_t b) {
  block_index = {static_cast<unsigned>(b % grid_dim.x), static_cast<unsigned>(b / grid_dim.x % grid_dim.y),
                 static_cast<unsigned>(b / grid_dim.x / grid_dim.y)};
}

// A block whose turn it is not, with its shared memory.
struct Paused {
  bool under_way = false;
  uint64_t number = 0;
  Block block;
  std::vector<unsigned char> dynamic_shared, static_shared;
};

// Blocks start in order, and at each of their barriers the next turn goes to any of those under way.
template <class Number>
void run_blocks_by_turns(uint64_t blocks, int threads, const Number& number) {
  static Paused paused[kBlocksByTurns];  // not left behind by a fault's jump
  for (Paused& p : paused) p = {};
  const size_t places = std::max<size_t>(1, std::min<size_t>(kBlocksByTurns, kMaxThreads / threads));
  std::mt19937 random(machine.seed);
  uint64_t begun = 0, ended = 0;
  while (ended < blocks && machine.error.empty()) {
    const size_t place = random() % places;
    Paused& p = paused[place];
    if (!p.under_way) {
      if (begun == blocks) continue;
      p.under_way = true;
      p.number = number(begun++);
      set_block_index(p.number);
      begin_block(static_cast<unsigned>(p.number), threads, static_cast<int>(place) * threads);
    } else {
      if (p.block.lags && random() % 8 != 0) continue;
      set_block_index(p.number);
      std::swap(static_cast<Block&>(machine), p.block);
      std::copy(p.dynamic_shared.begin(), p.dynamic_shared.end(), machine.dynamic_shared);
      std::copy(p.static_shared.begin(), p.static_shared.end(), static_memory);
    }
    machine.waits = machine.lags = false;
    if (run_block()) {
      p.under_way = false;
      ++ended;
    } else {
      p.dynamic_shared.assign(machine.dynamic_shared, machine.dynamic_shared + machine.dynamic_size);
      p.static_shared.assign(static_memory, static_memory + machine.static_used);
      std::swap(static_cast<Block&>(machine), p.block);
      if (p.block.waits) {
        const bool full = std::all_of(paused, paused + places, [](const Paused& p) { return p.under_way; });
        const bool stuck =
            std::all_of(paused, paused + places, [](const Paused& p) { return !p.under_way || p.block.waits; });
        if (stuck && (full || begun == blocks)) machine.error = "all blocks that have begun wait for others";
        continue;
      }
    }
    for (Paused& other : paused) other.block.waits = false;  // they may find now what they wait for
  }
}

std::string place() {
  const Index& t = machine.fibers[machine.thread].index;
  char text[160];
  snprintf(text, sizeof text, " (block %u,%u,%u, thread %u,%u,%u)", block_index.x, block_index.y, block_index.z, t.x,
           t.y, t.z);
  return text;
}

}  // namespace

void fail(const std::string& what) {
  machine.error = what + place();
  next_fiber();
  __builtin_unreachable();
}

void warp_operation(uint32_t mask, const char* operation, const void* operands, void (*execute)(Warp&, Fiber*)) {
  Warp& warp = current_warp();
  const uint32_t lane = current_lane();
  if ((mask & lane) == 0) fail(std::string(operation) + ": the calling lane is not in the mask");
  if ((mask & ~warp.members) != 0) fail(std::string(operation) + ": the mask names lanes that do not exist");
  if (warp.waiting != 0 &&
      (warp.mask != mask || (warp.operation != operation && std::strcmp(warp.operation, operation) != 0))) {
    fail(std::string(operation) + ": other lanes of the warp are in " + warp.operation);
  }
  if ((mask & warp.done) != 0) fail(std::string(operation) + ": the mask names lanes that have ended");
  machine.fibers[machine.thread].operands = operands;
  warp.operation = operation;
  warp.mask = mask;
  warp.waiting |= lane;
  if (warp.waiting == mask) {
    execute(warp, &machine.fibers[machine.thread / kWarp * kWarp]);
    warp.ready |= mask;
    warp.waiting = 0;
    return;
  }
  warp.ready &= ~lane;
  next_fiber();
}

int block_barrier(int contribution) {
  Warp& warp = current_warp();
  machine.votes += contribution;
  warp.ready &= ~current_lane();
  warp.at_barrier |= current_lane();
  const bool last =
      std::all_of(machine.warps.begin(), machine.warps.end(), [](const Warp& w) { return w.at_barrier == w.members; });
  if (last) {
    machine.vote = machine.votes;
    machine.votes = 0;
  }
  release_barrier_if_complete();
  next_fiber();
  return machine.vote;
}

void end_turn() {
  if (!machine.by_turns) return;
  machine.pause = machine.lags = true;
  next_fiber();
}

void wait_for_other_blocks() {
  if (!machine.by_turns) fail("the block waits for one that has not begun");
  machine.waits = true;
  end_turn();
}

void* SharedVariable::get(size_t bytes, size_t align) const {
  for (const auto& [variable, address] : machine.variables) {
    if (variable == this) return address;
  }
  machine.static_shared = static_memory;
  const size_t begin = (machine.static_used + align - 1) / align * align;
  if (begin + bytes > kMaxStatic) fail("more than 48 KiB of static shared memory");
  machine.static_used = begin + bytes;
  machine.variables.emplace_back(this, static_memory + begin);
  std::memset(static_memory + begin, 0xff, bytes);
  return static_memory + begin;
}

void fail_alignment(const char* what, size_t bytes) {
  fail(std::string(what) + ": the address is not a multiple of " + std::to_string(bytes));
}

void fail_outside_shared(const char* what) {
  fail(std::string(what) + ": the address is outside the block's shared memory");
}

const char* refusal(Index grid, Index block, size_t dynamic_shared) {
  const size_t threads = size_t{block.x} * block.y * block.z;
  if (threads == 0 || threads > kMaxThreads) return "a block has 1 to 1024 threads";
  if (grid.y > 65535 || grid.z > 65535) return "grid y and z end at 65535";
  if (dynamic_shared > kMaxDynamic) return "more than 227 KiB of shared memory";
  if (machine.until_refusal < 0) return nullptr;
  return machine.until_refusal-- == 0 ? "refused by the test" : nullptr;
}

void run_grid(Index grid, Index block, size_t dynamic_shared, std::function<void()> body) {
  const size_t threads = size_t{block.x} * block.y * block.z;
  machine.body = std::move(body);
  machine.error.clear();
  machine.by_turns = machine.seed >= 4;
  block_dim = block;
  grid_dim = grid;
  machine.dynamic_size = (dynamic_shared + 127) / 128 * 128;
  machine.dynamic_shared = dynamic_end() - machine.dynamic_size;
  const uint64_t blocks = uint64_t{grid.x} * grid.y * grid.z;
  const auto number = [&](uint64_t i) { return machine.seed % 2 == 1 ? blocks - 1 - i : i; };
  with_guards([&] {
    if (machine.by_turns) return run_blocks_by_turns(blocks, static_cast<int>(threads), number);
    for (uint64_t i = 0; i < blocks && machine.error.empty(); ++i) {
      set_block_index(number(i));
      begin_block(static_cast<unsigned>(number(i)), static_cast<int>(threads), 0);
      run_block();
    }
  });
  machine.body = nullptr;
  if (!machine.error.empty()) throw Fault("simt: " + machine.error);
}

}  // namespace simt
