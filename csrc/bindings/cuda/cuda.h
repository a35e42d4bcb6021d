// The bindings of the CUDA launchers, part of the module where the build holds CUDA kernels. Every function takes
// the stream (an address) last and returns as soon as its kernels are queued.
#pragma once

#include "../bindings.h"

namespace dove::bindings {

void bind_cuda_attention(py::module_& m);
void bind_cuda_block(py::module_& m);
void bind_cuda_eos(py::module_& m);
void bind_cuda_group_norm(py::module_& m);
void bind_cuda_pack(py::module_& m);

}  // namespace dove::bindings
