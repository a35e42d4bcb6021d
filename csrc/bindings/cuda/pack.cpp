#include "dove/pack.h"

#include "cuda.h"

namespace dove::bindings {
namespace {

template <Status (*move)(const PackArgs&, void*)>
void call(uintptr_t source, uintptr_t target, uintptr_t cu_seqlens, int64_t batch, int64_t max_len, int64_t width,
          int64_t element_bytes, int64_t padded_stride_b, int64_t padded_stride_k, int64_t packed_rows,
          uintptr_t stream) {
  raise_on_error("pack", move({pointer<const void>(source), pointer<void>(target), pointer<const int32_t>(cu_seqlens),
                               batch, max_len, width, element_bytes, padded_stride_b, padded_stride_k, 0, packed_rows},
                              pointer<void>(stream)));
}

}  // namespace

void bind_cuda_pack(py::module_& m) {
  const auto define = [&m](const char* name, auto function) {
    m.def(name, function, py::call_guard<py::gil_scoped_release>(), py::arg("source"), py::arg("target"),
          py::arg("cu_seqlens"), py::arg("batch"), py::arg("max_len"), py::arg("width"), py::arg("element_bytes"),
          py::arg("padded_stride_b"), py::arg("padded_stride_k"), py::arg("packed_rows"), py::arg("stream"));
  };
  define("cuda_pack", call<cuda::pack>);
  define("cuda_unpack", call<cuda::unpack>);
  m.def(
      "cuda_zero_tail",
      [](uintptr_t source, uintptr_t target, uintptr_t lengths, int64_t batch, int64_t max_len, int64_t width,
         int64_t element_bytes, int64_t source_stride_b, int64_t source_stride_k, uintptr_t stream) {
        raise_on_error("zero_tail", cuda::zero_tail({pointer<const void>(source), pointer<void>(target),
                                                     pointer<const int32_t>(lengths), batch, max_len, width,
                                                     element_bytes, source_stride_b, source_stride_k, 0},
                                                    pointer<void>(stream)));
      },
      py::call_guard<py::gil_scoped_release>(), py::arg("source"), py::arg("target"), py::arg("lengths"),
      py::arg("batch"), py::arg("max_len"), py::arg("width"), py::arg("element_bytes"), py::arg("source_stride_b"),
      py::arg("source_stride_k"), py::arg("stream"));
  m.def(
      "cuda_cu_seqlens",
      [](uintptr_t lengths, uintptr_t cu_seqlens, int64_t batch, uintptr_t stream) {
        raise_on_error("cu_seqlens",
                       cuda::cu_seqlens({pointer<const int32_t>(lengths), pointer<int32_t>(cu_seqlens), batch},
                                        pointer<void>(stream)));
      },
      py::call_guard<py::gil_scoped_release>(), py::arg("lengths"), py::arg("cu_seqlens"), py::arg("batch"),
      py::arg("stream"));
}

}  // namespace dove::bindings
