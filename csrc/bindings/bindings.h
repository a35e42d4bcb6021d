// The binding checks and converts; it computes nothing. Tensors arrive as addresses (data_ptr()) with
// shapes and strides: dove_ext/ops/ has checked devices and dtypes and has allocated the outputs.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <stdexcept>
#include <string>

#include "dove/common.h"

namespace dove::bindings {

namespace py = pybind11;

template <class T>
T* pointer(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

inline void raise_on_error(const char* op, Status status) {
  if (status != Status::kOk) throw std::runtime_error(std::string("dove::") + op + ": " + status_message(status));
}

void bind_attention(py::module_& m);
void bind_attention_args(py::module_& m);
void bind_conv(py::module_& m);
void bind_cuda(py::module_& m);
void bind_info(py::module_& m);
void bind_pack(py::module_& m);
void bind_eos(py::module_& m);
void bind_group_norm(py::module_& m);

}  // namespace dove::bindings
