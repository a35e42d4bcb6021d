#include "dove/conv.h"

#include <tuple>

#include "bindings.h"

namespace dove::bindings {
namespace {

// (batch, height, width, channels_in, channels_out, groups)
using Shape = std::tuple<int64_t, int64_t, int64_t, int64_t, int64_t, int64_t>;
// (address, stride between images, between rows, between pixels)
using Image = std::tuple<uintptr_t, int64_t, int64_t, int64_t>;
// (mean, rstd, weight, bias); zeros: no normalisation
using Norm = std::tuple<uintptr_t, uintptr_t, uintptr_t, uintptr_t>;

Conv3x3Args sized(const Shape& shape, int threads) {
  Conv3x3Args a{};
  std::tie(a.batch, a.height, a.width, a.channels_in, a.channels_out, a.groups) = shape;
  a.threads = threads;
  return a;
}

}  // namespace

void bind_conv(py::module_& m) {
  m.def("cpu_conv3x3_packed_values", &cpu::conv3x3_packed_values, "float32 values of packed weights.",
        py::arg("channels_in"), py::arg("channels_out"));
  m.def(
      "cpu_conv3x3_pack",
      [](uintptr_t weight, uintptr_t packed, int64_t channels_in, int64_t channels_out, int threads) {
        raise_on_error("conv3x3_pack", cpu::conv3x3_pack({pointer<const float>(weight), pointer<float>(packed),
                                                          channels_in, channels_out, threads}));
      },
      py::call_guard<py::gil_scoped_release>(), py::arg("weight"), py::arg("packed"), py::arg("channels_in"),
      py::arg("channels_out"), py::arg("threads"));
  m.def(
      "cpu_conv3x3_workspace", [](Shape shape, int threads) { return cpu::conv3x3_workspace(sized(shape, threads)); },
      "Bytes of workspace for cpu_conv3x3.", py::arg("shape"), py::arg("threads"));
  m.def(
      "cpu_conv3x3",
      [](Image x, Norm norm, uintptr_t packed, uintptr_t bias, uintptr_t residual, uintptr_t out, uintptr_t workspace,
         int64_t workspace_bytes, Shape shape, bool silu, int dtype, int threads) {
        Conv3x3Args a = sized(shape, threads);
        uintptr_t from, mean, rstd, norm_weight, norm_bias;
        std::tie(from, a.x_stride_image, a.x_stride_row, a.x_stride_pixel) = x;
        std::tie(mean, rstd, norm_weight, norm_bias) = norm;
        a.x = pointer<const void>(from);
        a.mean = pointer<const float>(mean);
        a.rstd = pointer<const float>(rstd);
        a.norm_weight = pointer<const float>(norm_weight);
        a.norm_bias = pointer<const float>(norm_bias);
        a.packed = pointer<const float>(packed);
        a.bias = pointer<const float>(bias);
        a.residual = pointer<const void>(residual);
        a.out = pointer<void>(out);
        a.workspace = pointer<void>(workspace);
        a.workspace_bytes = workspace_bytes;
        a.silu = silu;
        a.dtype = static_cast<DType>(dtype);
        raise_on_error("conv3x3", cpu::conv3x3(a));
      },
      py::call_guard<py::gil_scoped_release>(), py::arg("x"), py::arg("norm"), py::arg("packed"), py::arg("bias"),
      py::arg("residual"), py::arg("out"), py::arg("workspace"), py::arg("workspace_bytes"), py::arg("shape"),
      py::arg("silu"), py::arg("dtype"), py::arg("threads"));
}

}  // namespace dove::bindings
