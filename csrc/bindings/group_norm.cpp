#include "dove/group_norm.h"

#include <tuple>

#include "bindings.h"

namespace dove::bindings {

namespace {

// (address, stride between images, stride between pixels)
using Image = std::tuple<uintptr_t, int64_t, int64_t>;

void bind_backward(py::module_& m) {
  m.def(
      "cpu_group_norm_backward_workspace",
      [](int64_t batch, int64_t pixels, int64_t channels) {
        GroupNormBackwardArgs args{};
        args.batch = batch;
        args.pixels = pixels;
        args.channels = channels;
        return cpu::group_norm_backward_workspace(args);
      },
      "Bytes of workspace for cpu_group_norm_backward.", py::arg("batch"), py::arg("pixels"), py::arg("channels"));
  m.def(
      "cpu_group_norm_backward",
      [](Image grad_normed, Image grad_summed, Image x, uintptr_t weight, uintptr_t bias, uintptr_t mean,
         uintptr_t rstd, uintptr_t grad_x, uintptr_t grad_weight, uintptr_t grad_bias, uintptr_t workspace,
         int64_t workspace_bytes, int64_t batch, int64_t pixels, int64_t channels, int64_t groups, bool silu, int dtype,
         int threads) {
        GroupNormBackwardArgs a{};
        uintptr_t from;
        std::tie(from, a.grad_normed_stride_image, a.grad_normed_stride_pixel) = grad_normed;
        a.grad_normed = pointer<const void>(from);
        std::tie(from, a.grad_summed_stride_image, a.grad_summed_stride_pixel) = grad_summed;
        a.grad_summed = pointer<const void>(from);
        std::tie(from, a.x_stride_image, a.x_stride_pixel) = x;
        a.x = pointer<const void>(from);
        a.weight = pointer<const float>(weight);
        a.bias = pointer<const float>(bias);
        a.mean = pointer<const float>(mean);
        a.rstd = pointer<const float>(rstd);
        a.grad_x = pointer<void>(grad_x);
        a.grad_weight = pointer<float>(grad_weight);
        a.grad_bias = pointer<float>(grad_bias);
        a.workspace = pointer<void>(workspace);
        a.workspace_bytes = workspace_bytes;
        a.batch = batch;
        a.pixels = pixels;
        a.channels = channels;
        a.groups = groups;
        a.silu = silu;
        a.dtype = static_cast<DType>(dtype);
        a.threads = threads;
        raise_on_error("group_norm_backward", cpu::group_norm_backward(a));
      },
      py::call_guard<py::gil_scoped_release>(), py::arg("grad_normed"), py::arg("grad_summed"), py::arg("x"),
      py::arg("weight"), py::arg("bias"), py::arg("mean"), py::arg("rstd"), py::arg("grad_x"), py::arg("grad_weight"),
      py::arg("grad_bias"), py::arg("workspace"), py::arg("workspace_bytes"), py::arg("batch"), py::arg("pixels"),
      py::arg("channels"), py::arg("groups"), py::arg("silu"), py::arg("dtype"), py::arg("threads"));
}

}  // namespace

void bind_group_norm(py::module_& m) {
  m.def(
      "cpu_group_norm_workspace",
      [](int64_t batch, int64_t pixels, int64_t channels, int64_t groups, int threads) {
        GroupNormArgs args{};
        args.batch = batch;
        args.pixels = pixels;
        args.channels = channels;
        args.groups = groups;
        args.threads = threads;
        return cpu::group_norm_workspace(args);
      },
      "Bytes of workspace for cpu_group_norm.", py::arg("batch"), py::arg("pixels"), py::arg("channels"),
      py::arg("groups"), py::arg("threads"));
  m.def(
      "cpu_group_norm",
      [](uintptr_t x, uintptr_t residual, uintptr_t weight, uintptr_t bias, uintptr_t normed, uintptr_t summed,
         uintptr_t mean, uintptr_t rstd, uintptr_t workspace, int64_t workspace_bytes, int64_t batch, int64_t pixels,
         int64_t channels, int64_t groups, int64_t x_stride_image, int64_t x_stride_pixel,
         int64_t residual_stride_image, int64_t residual_stride_pixel, double eps, bool silu, int dtype, int threads) {
        raise_on_error("group_norm", cpu::group_norm({pointer<const void>(x),
                                                      pointer<const void>(residual),
                                                      pointer<const void>(weight),
                                                      pointer<const void>(bias),
                                                      pointer<void>(normed),
                                                      pointer<void>(summed),
                                                      pointer<float>(mean),
                                                      pointer<float>(rstd),
                                                      pointer<void>(workspace),
                                                      workspace_bytes,
                                                      batch,
                                                      pixels,
                                                      channels,
                                                      groups,
                                                      x_stride_image,
                                                      x_stride_pixel,
                                                      residual_stride_image,
                                                      residual_stride_pixel,
                                                      eps,
                                                      silu,
                                                      static_cast<DType>(dtype),
                                                      threads,
                                                      DType::kFloat32}));
      },
      py::call_guard<py::gil_scoped_release>(), py::arg("x"), py::arg("residual"), py::arg("weight"), py::arg("bias"),
      py::arg("normed"), py::arg("summed"), py::arg("mean"), py::arg("rstd"), py::arg("workspace"),
      py::arg("workspace_bytes"), py::arg("batch"), py::arg("pixels"), py::arg("channels"), py::arg("groups"),
      py::arg("x_stride_image"), py::arg("x_stride_pixel"), py::arg("residual_stride_image"),
      py::arg("residual_stride_pixel"), py::arg("eps"), py::arg("silu"), py::arg("dtype"), py::arg("threads"));
  bind_backward(m);
}

}  // namespace dove::bindings
