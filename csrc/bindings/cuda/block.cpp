#include "dove/block.h"

#include "cuda.h"

namespace dove::bindings {

void bind_cuda_block(py::module_& m) {
  m.def(
      "cuda_pair_norm",
      [](uintptr_t x, uintptr_t weight_a, uintptr_t bias_a, uintptr_t weight_b, uintptr_t bias_b, uintptr_t normed_a,
         uintptr_t normed_b, uintptr_t mean, uintptr_t rstd, int64_t rows, int64_t width, double eps, int dtype,
         int parameters, uintptr_t stream) {
        raise_on_error("pair_norm", cuda::pair_norm({pointer<const void>(x),
                                                     {pointer<const void>(weight_a), pointer<const void>(weight_b)},
                                                     {pointer<const void>(bias_a), pointer<const void>(bias_b)},
                                                     {pointer<void>(normed_a), pointer<void>(normed_b)},
                                                     pointer<float>(mean),
                                                     pointer<float>(rstd),
                                                     rows,
                                                     width,
                                                     eps,
                                                     static_cast<DType>(dtype),
                                                     static_cast<DType>(parameters)},
                                                    pointer<void>(stream)));
      },
      py::call_guard<py::gil_scoped_release>(), py::arg("x"), py::arg("weight_a"), py::arg("bias_a"),
      py::arg("weight_b"), py::arg("bias_b"), py::arg("normed_a"), py::arg("normed_b"), py::arg("mean"),
      py::arg("rstd"), py::arg("rows"), py::arg("width"), py::arg("eps"), py::arg("dtype"), py::arg("parameters"),
      py::arg("stream"));
  m.def("cuda_pair_norm_backward_workspace", &cuda::pair_norm_backward_workspace,
        "Bytes of workspace for cuda_pair_norm_backward.", py::arg("rows"), py::arg("width"));
  m.def(
      "cuda_pair_norm_backward",
      [](uintptr_t x, uintptr_t grad_a, uintptr_t grad_b, uintptr_t weight_a, uintptr_t weight_b, uintptr_t mean,
         uintptr_t rstd, uintptr_t grad_x, uintptr_t grad_parameters, uintptr_t workspace, int64_t workspace_bytes,
         int64_t rows, int64_t width, int dtype, int parameters, uintptr_t stream) {
        raise_on_error("pair_norm_backward",
                       cuda::pair_norm_backward({pointer<const void>(x),
                                                 {pointer<const void>(grad_a), pointer<const void>(grad_b)},
                                                 {pointer<const void>(weight_a), pointer<const void>(weight_b)},
                                                 pointer<const float>(mean),
                                                 pointer<const float>(rstd),
                                                 pointer<void>(grad_x),
                                                 pointer<float>(grad_parameters),
                                                 pointer<void>(workspace),
                                                 workspace_bytes,
                                                 rows,
                                                 width,
                                                 static_cast<DType>(dtype),
                                                 static_cast<DType>(parameters)},
                                                pointer<void>(stream)));
      },
      py::call_guard<py::gil_scoped_release>(), py::arg("x"), py::arg("grad_a"), py::arg("grad_b"), py::arg("weight_a"),
      py::arg("weight_b"), py::arg("mean"), py::arg("rstd"), py::arg("grad_x"), py::arg("grad_parameters"),
      py::arg("workspace"), py::arg("workspace_bytes"), py::arg("rows"), py::arg("width"), py::arg("dtype"),
      py::arg("parameters"), py::arg("stream"));
  const auto define_gelu = [&m](const char* name, auto function) {
    m.def(
        name,
        [name, function](uintptr_t x, uintptr_t bias, uintptr_t grad, uintptr_t out, int64_t rows, int64_t width,
                         int dtype, int parameters, uintptr_t stream) {
          raise_on_error(
              name + 5,  // without "cuda_"
              function({pointer<const void>(x), pointer<const void>(bias), pointer<const void>(grad),
                        pointer<void>(out), rows, width, static_cast<DType>(dtype), static_cast<DType>(parameters)},
                       pointer<void>(stream)));
        },
        py::call_guard<py::gil_scoped_release>(), py::arg("x"), py::arg("bias"), py::arg("grad"), py::arg("out"),
        py::arg("rows"), py::arg("width"), py::arg("dtype"), py::arg("parameters"), py::arg("stream"));
  };
  define_gelu("cuda_bias_gelu", cuda::bias_gelu);
  define_gelu("cuda_bias_gelu_backward", cuda::bias_gelu_backward);
  m.def(
      "cuda_add_branches",
      [](uintptr_t x, uintptr_t a, uintptr_t b, uintptr_t bias_a, uintptr_t bias_b, uintptr_t out, int64_t rows,
         int64_t width, int dtype, int parameters, uintptr_t stream) {
        raise_on_error("add_branches",
                       cuda::add_branches({pointer<const void>(x), pointer<const void>(a), pointer<const void>(b),
                                           pointer<const void>(bias_a), pointer<const void>(bias_b), pointer<void>(out),
                                           rows, width, static_cast<DType>(dtype), static_cast<DType>(parameters)},
                                          pointer<void>(stream)));
      },
      py::call_guard<py::gil_scoped_release>(), py::arg("x"), py::arg("a"), py::arg("b"), py::arg("bias_a"),
      py::arg("bias_b"), py::arg("out"), py::arg("rows"), py::arg("width"), py::arg("dtype"), py::arg("parameters"),
      py::arg("stream"));
}

}  // namespace dove::bindings
