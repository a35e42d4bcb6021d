// Guarded buffers for what a kernel sees as global memory: the page behind the last byte cannot be touched, the
// bytes before the first hold a pattern that is looked at afterwards.
#include <setjmp.h>
#include <signal.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstdio>
#include <cstring>

#include "block.h"

namespace simt {

extern Index block_index;

namespace {

struct Buffer {
  unsigned char* memory;  // a guard, the pages that hold the data, a guard
  size_t mapped;
  unsigned char* data;
  size_t bytes;
};

std::vector<Buffer> buffers;
constexpr unsigned char kEdge = 0xff;  // reads as NaN
constexpr size_t kGuard = 1 << 20;     // address space only

sigjmp_buf escape;
struct sigaction old_segv, old_bus, old_fpe;

size_t page() { return static_cast<size_t>(sysconf(_SC_PAGESIZE)); }

void on_fault(int, siginfo_t* info, void*) {
  const auto* address = static_cast<const unsigned char*>(info->si_addr);
  char text[200] = "";
  for (size_t i = 0; i < buffers.size(); ++i) {
    const Buffer& b = buffers[i];
    if (address < b.memory || address >= b.memory + b.mapped) continue;
    snprintf(text, sizeof text, "access outside global buffer %zu of %zu bytes, at byte %td", i, b.bytes,
             address - b.data);
  }
  if (text[0] == 0) snprintf(text, sizeof text, "access to %p, which belongs to no buffer", info->si_addr);
  const Index& t = machine.fibers[machine.thread].index;
  char place[160];
  snprintf(place, sizeof place, " (block %u,%u,%u, thread %u,%u,%u)", block_index.x, block_index.y, block_index.z, t.x,
           t.y, t.z);
  machine.error = std::string(text) + place;
  siglongjmp(escape, 1);
}

}  // namespace

void* allocate(size_t bytes) {
  const size_t pages = (bytes + 15) / 16 * 16;
  const size_t inside = (pages + page() - 1) / page() * page();
  Buffer b{nullptr, inside + 2 * kGuard, nullptr, bytes};
  void* memory = mmap(nullptr, b.mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) throw Fault("no memory for a guarded buffer");
  b.memory = static_cast<unsigned char*>(memory);
  std::memset(b.memory + kGuard, kEdge, inside);
  b.data = b.memory + kGuard + inside - pages;
  mprotect(b.memory, kGuard, PROT_NONE);
  mprotect(b.memory + kGuard + inside, kGuard, PROT_NONE);
  buffers.push_back(b);
  return b.data;
}

std::string release_all() {
  std::string damaged;
  for (size_t i = 0; i < buffers.size(); ++i) {
    const Buffer& b = buffers[i];
    bool clean = true;
    for (const unsigned char* p = b.memory + kGuard; p < b.data; ++p) clean &= *p == kEdge;
    for (const unsigned char* p = b.data + b.bytes; p < b.memory + b.mapped - kGuard; ++p) clean &= *p == kEdge;
    if (!clean)
      damaged += "buffer " + std::to_string(i) + " was written outside its " + std::to_string(b.bytes) + " bytes; ";
    munmap(b.memory, b.mapped);
  }
  buffers.clear();
  return damaged;
}

void with_guards(const std::function<void()>& run) {
  static unsigned char stack[64 * 1024];
  stack_t alternate{}, before{};
  alternate.ss_sp = stack;
  alternate.ss_size = sizeof stack;
  sigaltstack(&alternate, &before);
  struct sigaction action{};
  action.sa_sigaction = on_fault;
  action.sa_flags = SA_SIGINFO | SA_ONSTACK;
  sigaction(SIGSEGV, &action, &old_segv);
  sigaction(SIGBUS, &action, &old_bus);
  sigaction(SIGFPE, &action, &old_fpe);
  if (sigsetjmp(escape, 1) == 0) run();
  sigaction(SIGSEGV, &old_segv, nullptr);
  sigaction(SIGBUS, &old_bus, nullptr);
  sigaction(SIGFPE, &old_fpe, nullptr);
  sigaltstack(&before, nullptr);
}

}  // namespace simt
