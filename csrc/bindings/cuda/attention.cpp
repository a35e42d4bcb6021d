#include "dove/attention.h"
#include "cuda.h"

namespace dove::bindings {

void bind_cuda_attention(py::module_& m) {}

}  // namespace dove::bindings
