#include "../bindings.h"
#include "cuda.h"

namespace dove::bindings {

void bind_cuda(py::module_& m) {
  bind_cuda_attention(m);
  bind_cuda_block(m);
  bind_cuda_eos(m);
  bind_cuda_group_norm(m);
  bind_cuda_pack(m);
}

}  // namespace dove::bindings
