// The binding checks and converts; it computes nothing. Every op takes one struct of arguments, the one of its header
// in dove/, which arguments.cpp shows to Python: dove_ext/ops/ has checked devices and dtypes, has allocated the
// outputs and fills it. cpu.cpp and cuda.cpp list the ops of each device.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <stdexcept>
#include <string>

#include "dove/common.h"

namespace dove::bindings {

namespace py = pybind11;

inline void raise_on_error(const char* op, Status status) {
  if (status != Status::kOk) throw std::runtime_error(std::string("dove::") + op + ": " + status_message(status));
}

// PREFIX_OP_workspace(args), the bytes that PREFIX_OP wants in args.workspace; nothing for ops that want none.
template <class Args>
void bind_workspace(py::module_& m, const std::string& name, int64_t (*workspace)(const Args&)) {
  if (workspace != nullptr) m.def((name + "_workspace").c_str(), workspace, py::arg("args"));
}

// cpu_OP(args).
template <class Args>
void bind_op(py::module_& m, const char* op, Status (*run)(const Args&), int64_t (*workspace)(const Args&) = nullptr) {
  const std::string name = std::string("cpu_") + op;
  m.def(
      name.c_str(), [op, run](const Args& args) { raise_on_error(op, run(args)); },
      py::call_guard<py::gil_scoped_release>(), py::arg("args"));
  bind_workspace(m, name, workspace);
}

// cuda_OP(args, stream): the stream is an address, and the call returns as soon as its kernels are queued.
template <class Args>
void bind_op(py::module_& m, const char* op, Status (*run)(const Args&, void*),
             int64_t (*workspace)(const Args&) = nullptr) {
  const std::string name = std::string("cuda_") + op;
  m.def(
      name.c_str(),
      [op, run](const Args& args, uintptr_t stream) { raise_on_error(op, run(args, reinterpret_cast<void*>(stream))); },
      py::call_guard<py::gil_scoped_release>(), py::arg("args"), py::arg("stream"));
  bind_workspace(m, name, workspace);
}

void bind_arguments(py::module_& m);
void bind_cpu(py::module_& m);
void bind_cuda(py::module_& m);
void bind_info(py::module_& m);

}  // namespace dove::bindings
