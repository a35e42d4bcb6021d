#include "bindings.h"

PYBIND11_MODULE(_C, m) {
  m.doc() = "Compiled kernels of dove_ext; call them through dove_ext.ops.";
  dove::bindings::bind_info(m);
  dove::bindings::bind_arguments(m);
  dove::bindings::bind_cpu(m);
#ifdef DOVE_CUDA
  dove::bindings::bind_cuda(m);
#endif
}
