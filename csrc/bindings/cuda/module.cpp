#include "../bindings.h"
#include "cuda.h"

namespace dove::bindings {

void bind_cuda(py::module_& m) { bind_cuda_attention(m); }

}  // namespace dove::bindings
