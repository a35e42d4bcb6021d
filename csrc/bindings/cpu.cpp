// The ops with CPU kernels, by name.
#include "bindings.h"
#include "dove/attention.h"
#include "dove/conv.h"
#include "dove/eos.h"
#include "dove/group_norm.h"
#include "dove/pack.h"

namespace dove::bindings {

void bind_cpu(py::module_& m) {
  bind_op(m, "attention", cpu::attention, cpu::attention_workspace);
  bind_op(m, "attention_backward", cpu::attention_backward, cpu::attention_backward_workspace);
  bind_op(m, "conv3x3", cpu::conv3x3, cpu::conv3x3_workspace);
  bind_op(m, "conv3x3_pack", cpu::conv3x3_pack);
  m.def("cpu_conv3x3_packed_values", &cpu::conv3x3_packed_values, "float32 values of packed weights.",
        py::arg("channels_in"), py::arg("channels_out"));
  bind_op(m, "eos_probability", cpu::eos_probability, cpu::eos_workspace);
  bind_op(m, "eos_scan", cpu::eos_scan, cpu::eos_workspace);
  bind_op(m, "group_norm", cpu::group_norm, cpu::group_norm_workspace);
  bind_op(m, "group_norm_backward", cpu::group_norm_backward, cpu::group_norm_backward_workspace);
  bind_op(m, "pack", cpu::pack);
  bind_op(m, "unpack", cpu::unpack);
  bind_op(m, "zero_tail", cpu::zero_tail);
}

}  // namespace dove::bindings
