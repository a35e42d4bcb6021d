#include "isa.h"

#include <atomic>

#include "dove/common.h"

namespace dove {

const char* status_message(Status status) {
  switch (status) {
    case Status::kOk:
      return "ok";
    case Status::kUnsupportedDType:
      return "this dtype has no kernel";
    case Status::kUnsupportedShape:
      return "this shape has no kernel";
    case Status::kWorkspaceTooSmall:
      return "the workspace is too small";
    case Status::kBadLengths:
      return "lengths or cu_seqlens are out of range";
    case Status::kBadIndex:
      return "an index is out of range";
    case Status::kLaunchFailed:
      return "CUDA refused to start the kernel; `dove info` names the architectures of this build";
  }
  return "unknown status";
}

namespace cpu {
namespace {

bool supported(Isa isa) {
#if defined(DOVE_X86)
  // __builtin_cpu_supports also asks the operating system whether it saves the wide registers.
  __builtin_cpu_init();
  switch (isa) {
    case Isa::kPortable:
      return true;
    case Isa::kAvx2:
      return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    case Isa::kAvx512:
      return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
             __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
             __builtin_cpu_supports("avx512bf16");
  }
  return false;
#else
  return isa == Isa::kPortable;
#endif
}

Isa detect() {
  if (supported(Isa::kAvx512)) return Isa::kAvx512;
  if (supported(Isa::kAvx2)) return Isa::kAvx2;
  return Isa::kPortable;
}

std::atomic<int>& active() {
  static std::atomic<int> isa{static_cast<int>(detect())};
  return isa;
}

}  // namespace

Isa active_isa() { return static_cast<Isa>(active().load(std::memory_order_relaxed)); }

bool force_isa(Isa isa) {
  if (!supported(isa)) return false;
  active().store(static_cast<int>(isa), std::memory_order_relaxed);
  return true;
}

const char* isa_name(Isa isa) {
  switch (isa) {
    case Isa::kPortable:
      return "portable";
    case Isa::kAvx2:
      return "avx2+fma";
    case Isa::kAvx512:
      return "avx512+bf16";
  }
  return "unknown";
}

}  // namespace cpu
}  // namespace dove
