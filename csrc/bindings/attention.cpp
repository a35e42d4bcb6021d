#include "dove/attention.h"

#include "bindings.h"

namespace dove::bindings {
void bind_attention(py::module_& m) {
  m.def("cpu_attention_workspace", &cpu::attention_workspace, py::arg("args"), py::arg("backward"));
  m.def(
      "cpu_attention", [](const AttentionArgs& a) { raise_on_error("attention", cpu::attention(a)); },
      py::call_guard<py::gil_scoped_release>(), py::arg("args"));
  m.def(
      "cpu_attention_backward",
      [](const AttentionArgs& a) { raise_on_error("attention_backward", cpu::attention_backward(a)); },
      py::call_guard<py::gil_scoped_release>(), py::arg("args"));
}

}  // namespace dove::bindings
