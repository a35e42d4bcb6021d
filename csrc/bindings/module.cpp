#include "bindings.h"

PYBIND11_MODULE(_C, m) {
  m.doc() = "Compiled kernels of dove_ext; call them through dove_ext.ops.";
  dove::bindings::bind_attention_args(m);
  dove::bindings::bind_conv(m);
  dove::bindings::bind_attention(m);
  dove::bindings::bind_info(m);
  dove::bindings::bind_pack(m);
  dove::bindings::bind_eos(m);
  dove::bindings::bind_group_norm(m);
#ifdef DOVE_CUDA
  dove::bindings::bind_cuda(m);
#endif
}
