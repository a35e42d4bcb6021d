#include "dove/attention.h"

#include "cuda.h"

namespace dove::bindings {

void bind_cuda_attention(py::module_& m) {
  m.def("cuda_attention_workspace", &cuda::attention_workspace, py::arg("args"), py::arg("backward"));
  m.def(
      "cuda_attention",
      [](const AttentionArgs& a, uintptr_t stream) {
        raise_on_error("attention", cuda::attention(a, pointer<void>(stream)));
      },
      py::call_guard<py::gil_scoped_release>(), py::arg("args"), py::arg("stream"));
  m.def(
      "cuda_attention_backward",
      [](const AttentionArgs& a, uintptr_t stream) {
        raise_on_error("attention_backward", cuda::attention_backward(a, pointer<void>(stream)));
      },
      py::call_guard<py::gil_scoped_release>(), py::arg("args"), py::arg("stream"));
}

}  // namespace dove::bindings
