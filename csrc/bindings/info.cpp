#include "../cpu/isa.h"
#include "bindings.h"
#include "build_info.h"

namespace dove::bindings {

void bind_info(py::module_& m) {
  m.def("cpu_isa", [] { return cpu::isa_name(cpu::active_isa()); }, "Instruction set in use.");
  m.def(
      "force_cpu_isa", [](int isa) { return isa >= 0 && isa <= 2 && cpu::force_isa(static_cast<cpu::Isa>(isa)); },
      "For tests: 0 portable, 1 avx2+fma, 2 avx512+bf16. False if it cannot run here.", py::arg("isa"));
  // "" while no CUDA source is part of the build.
  m.def("cuda_archs", [] { return kCudaArchs; }, "Architectures the CUDA kernels were compiled for.");
  m.def("cuda_why_not", [] { return kCudaWhyNot; }, "Why the build holds no CUDA kernels, or \"\".");
}

}  // namespace dove::bindings
