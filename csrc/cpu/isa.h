// Which instruction sets this build holds and which one this machine runs.
#pragma once

namespace dove::cpu {

enum class Isa : int { kPortable = 0, kAvx2 = 1, kAvx512 = 2 };

// The best variant that is compiled in and that the machine (and its operating system) supports.
// Detected once; `force_isa` overrides it for tests.
Isa active_isa();

// False when this build or this machine lacks the variant; then nothing changes.
bool force_isa(Isa isa);

// "portable" | "avx2+fma" | "avx512+bf16"
const char* isa_name(Isa isa);

}  // namespace dove::cpu

// A kernel source in cpu/kernels/ is compiled once per instruction set, each time inside a namespace of
// its own (DOVE_ISA, set by the build). DOVE_DECLARE names the variants of one kernel entry point to its
// dispatcher, DOVE_DISPATCH calls the active one.
#if defined(DOVE_X86)
#define DOVE_DECLARE(name, Args) \
  namespace portable {           \
  Status name(const Args&);      \
  }                              \
  namespace avx2 {               \
  Status name(const Args&);      \
  }                              \
  namespace avx512 {             \
  Status name(const Args&);      \
  }
#define DOVE_DISPATCH(name, args) \
  switch (active_isa()) {         \
    case Isa::kAvx512:            \
      return avx512::name(args);  \
    case Isa::kAvx2:              \
      return avx2::name(args);    \
    case Isa::kPortable:          \
      break;                      \
  }                               \
  return portable::name(args)
#else
#define DOVE_DECLARE(name, Args) \
  namespace portable {           \
  Status name(const Args&);      \
  }
#define DOVE_DISPATCH(name, args) return portable::name(args)
#endif
