#include "dove/group_norm.h"

#include "cuda.h"

namespace dove::bindings {

void bind_cuda_group_norm(py::module_& m) {
  m.def("cuda_group_norm_workspace", &cuda::group_norm_workspace,
        "Bytes of workspace for cuda_group_norm and cuda_group_norm_backward.", py::arg("batch"), py::arg("pixels"),
        py::arg("channels"), py::arg("groups"));
  m.def(
      "cuda_group_norm",
      [](uintptr_t x, uintptr_t residual, uintptr_t weight, uintptr_t bias, uintptr_t normed, uintptr_t summed,
         uintptr_t mean, uintptr_t rstd, uintptr_t workspace, int64_t workspace_bytes, int64_t batch, int64_t pixels,
         int64_t channels, int64_t groups, int64_t x_stride_image, int64_t x_stride_pixel,
         int64_t residual_stride_image, int64_t residual_stride_pixel, double eps, bool silu, int dtype, int parameters,
         uintptr_t stream) {
        raise_on_error("group_norm", cuda::group_norm({pointer<const void>(x),
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
                                                       0,
                                                       static_cast<DType>(parameters)},
                                                      pointer<void>(stream)));
      },
      py::call_guard<py::gil_scoped_release>(), py::arg("x"), py::arg("residual"), py::arg("weight"), py::arg("bias"),
      py::arg("normed"), py::arg("summed"), py::arg("mean"), py::arg("rstd"), py::arg("workspace"),
      py::arg("workspace_bytes"), py::arg("batch"), py::arg("pixels"), py::arg("channels"), py::arg("groups"),
      py::arg("x_stride_image"), py::arg("x_stride_pixel"), py::arg("residual_stride_image"),
      py::arg("residual_stride_pixel"), py::arg("eps"), py::arg("silu"), py::arg("dtype"), py::arg("parameters"),
      py::arg("stream"));
  m.def(
      "cuda_group_norm_backward",
      [](uintptr_t grad, uintptr_t summed, uintptr_t grad_summed, uintptr_t weight, uintptr_t bias, uintptr_t mean,
         uintptr_t rstd, uintptr_t grad_x, uintptr_t grad_weight, uintptr_t grad_bias, uintptr_t workspace,
         int64_t workspace_bytes, int64_t batch, int64_t pixels, int64_t channels, int64_t groups,
         int64_t grad_stride_image, int64_t grad_stride_pixel, int64_t summed_stride_image, int64_t summed_stride_pixel,
         int64_t grad_summed_stride_image, int64_t grad_summed_stride_pixel, bool silu, int dtype, int parameters,
         uintptr_t stream) {
        raise_on_error("group_norm_backward", cuda::group_norm_backward({pointer<const void>(grad),
                                                                         pointer<const void>(summed),
                                                                         pointer<const void>(grad_summed),
                                                                         pointer<const void>(weight),
                                                                         pointer<const void>(bias),
                                                                         pointer<const float>(mean),
                                                                         pointer<const float>(rstd),
                                                                         pointer<void>(grad_x),
                                                                         pointer<float>(grad_weight),
                                                                         pointer<float>(grad_bias),
                                                                         pointer<void>(workspace),
                                                                         workspace_bytes,
                                                                         batch,
                                                                         pixels,
                                                                         channels,
                                                                         groups,
                                                                         grad_stride_image,
                                                                         grad_stride_pixel,
                                                                         summed_stride_image,
                                                                         summed_stride_pixel,
                                                                         grad_summed_stride_image,
                                                                         grad_summed_stride_pixel,
                                                                         silu,
                                                                         static_cast<DType>(dtype),
                                                                         static_cast<DType>(parameters)},
                                                                        pointer<void>(stream)));
      },
      py::call_guard<py::gil_scoped_release>(), py::arg("grad"), py::arg("summed"), py::arg("grad_summed"),
      py::arg("weight"), py::arg("bias"), py::arg("mean"), py::arg("rstd"), py::arg("grad_x"), py::arg("grad_weight"),
      py::arg("grad_bias"), py::arg("workspace"), py::arg("workspace_bytes"), py::arg("batch"), py::arg("pixels"),
      py::arg("channels"), py::arg("groups"), py::arg("grad_stride_image"), py::arg("grad_stride_pixel"),
      py::arg("summed_stride_image"), py::arg("summed_stride_pixel"), py::arg("grad_summed_stride_image"),
      py::arg("grad_summed_stride_pixel"), py::arg("silu"), py::arg("dtype"), py::arg("parameters"), py::arg("stream"));
}

}  // namespace dove::bindings
