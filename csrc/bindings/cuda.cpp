// The ops with CUDA kernels, by name; part of the module where the build holds CUDA kernels.
#include "bindings.h"
#include "dove/attention.h"
#include "dove/block.h"
#include "dove/eos.h"
#include "dove/group_norm.h"
#include "dove/pack.h"
#include "dove/residual_sum.h"

namespace dove::bindings {

void bind_cuda(py::module_& m) {
  bind_op(m, "add_branches", cuda::add_branches);
  bind_op(m, "attention", cuda::attention);
  bind_op(m, "attention_backward", cuda::attention_backward, cuda::attention_backward_workspace);
  bind_op(m, "bias_gelu", cuda::bias_gelu);
  bind_op(m, "bias_gelu_backward", cuda::bias_gelu_backward);
  bind_op(m, "cu_seqlens", cuda::cu_seqlens);
  m.def(
      "cuda_eos_backward_fits", [](int dtype) { return cuda::eos_backward_fits(static_cast<DType>(dtype)); },
      "Whether the current device can run cuda_eos_probability_backward.", py::arg("dtype"));
  bind_op(m, "eos_probability", cuda::eos_probability, cuda::eos_probability_workspace);
  bind_op(m, "eos_probability_backward", cuda::eos_probability_backward, cuda::eos_backward_workspace);
  bind_op(m, "eos_scan", cuda::eos_scan, cuda::eos_scan_workspace);
  bind_op(m, "group_norm", cuda::group_norm, cuda::group_norm_workspace);
  bind_op(m, "group_norm_backward", cuda::group_norm_backward, cuda::group_norm_backward_workspace);
  bind_op(m, "pack", cuda::pack);
  bind_op(m, "pair_norm", cuda::pair_norm);
  bind_op(m, "pair_norm_backward", cuda::pair_norm_backward, cuda::pair_norm_backward_workspace);
  bind_op(m, "residual_sum", cuda::residual_sum);
  bind_op(m, "unpack", cuda::unpack);
  bind_op(m, "zero_tail", cuda::zero_tail);
}

}  // namespace dove::bindings
