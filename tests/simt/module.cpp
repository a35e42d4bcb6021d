// The module `_simt`: the bindings of csrc/bindings over the emulated kernels, and the controls of the emulation.
#include <pybind11/pybind11.h>

#include <utility>

#include "../../csrc/bindings/arguments.cpp"  // as one source: most of the time of each goes into pybind11's headers
#include "../../csrc/bindings/cuda.cpp"
#include "block.h"
#include "selftest.h"

namespace py = pybind11;

PYBIND11_MODULE(_simt, m) {
  dove::bindings::bind_arguments(m);
  dove::bindings::bind_cuda(m);
  m.def("simt_allocate", [](size_t bytes) { return reinterpret_cast<uintptr_t>(simt::allocate(bytes)); });
  m.def("simt_release_all", &simt::release_all);
  m.def("simt_selftest", [](const std::string& what, uintptr_t a, uintptr_t b, uintptr_t c) {
    simt_selftest::run(what, reinterpret_cast<float*>(a), reinterpret_cast<float*>(b), reinterpret_cast<float*>(c));
  });
  m.def("simt_convert", [](int kind, uintptr_t from, uintptr_t to, size_t count) {
    simt_selftest::convert(kind, reinterpret_cast<const void*>(from), reinterpret_cast<void*>(to), count);
  });
  // Refuses one launch behind so many; returns what was left of the number before.
  m.def("simt_refuse", [](int accepted) { return std::exchange(simt::machine.until_refusal, accepted); });
  m.def("simt_seed", [](unsigned seed) { simt::machine.seed = seed; });
}
