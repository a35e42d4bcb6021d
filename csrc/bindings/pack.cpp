#include "dove/pack.h"

#include "bindings.h"

namespace dove::bindings {
namespace {

template <Status (*kernel)(const PackArgs&)>
void call(const char* op, uintptr_t source, uintptr_t target, uintptr_t cu_seqlens, int64_t batch, int64_t max_len,
          int64_t width, int64_t element_bytes, int64_t padded_stride_b, int64_t padded_stride_k, int threads) {
  raise_on_error(op, kernel({pointer<const void>(source), pointer<void>(target), pointer<const int32_t>(cu_seqlens),
                             batch, max_len, width, element_bytes, padded_stride_b, padded_stride_k, threads, 0}));
}

}  // namespace

void bind_pack(py::module_& m) {
  const auto define = [&m](const char* op, auto function) {
    m.def(
        op,
        [op, function](uintptr_t source, uintptr_t target, uintptr_t cu_seqlens, int64_t batch, int64_t max_len,
                       int64_t width, int64_t element_bytes, int64_t padded_stride_b, int64_t padded_stride_k,
                       int threads) {
          function(op, source, target, cu_seqlens, batch, max_len, width, element_bytes, padded_stride_b,
                   padded_stride_k, threads);
        },
        py::call_guard<py::gil_scoped_release>(), py::arg("source"), py::arg("target"), py::arg("cu_seqlens"),
        py::arg("batch"), py::arg("max_len"), py::arg("width"), py::arg("element_bytes"), py::arg("padded_stride_b"),
        py::arg("padded_stride_k"), py::arg("threads"));
  };
  define("cpu_pack", call<cpu::pack>);
  define("cpu_unpack", call<cpu::unpack>);
  m.def(
      "cpu_zero_tail",
      [](uintptr_t source, uintptr_t target, uintptr_t lengths, int64_t batch, int64_t max_len, int64_t width,
         int64_t element_bytes, int64_t source_stride_b, int64_t source_stride_k, int threads) {
        raise_on_error("zero_tail", cpu::zero_tail({pointer<const void>(source), pointer<void>(target),
                                                    pointer<const int32_t>(lengths), batch, max_len, width,
                                                    element_bytes, source_stride_b, source_stride_k, threads}));
      },
      py::call_guard<py::gil_scoped_release>(), py::arg("source"), py::arg("target"), py::arg("lengths"),
      py::arg("batch"), py::arg("max_len"), py::arg("width"), py::arg("element_bytes"), py::arg("source_stride_b"),
      py::arg("source_stride_k"), py::arg("threads"));
}

}  // namespace dove::bindings
