#include "dove/eos.h"

#include "cuda.h"

namespace dove::bindings {

// Both forward functions, and the workspace of each, read the same fields of EosArgs.
void bind_cuda_eos(py::module_& m) {
  const auto define_workspace = [&m](const char* name, int64_t (*function)(const EosArgs&)) {
    m.def(
        name,
        [function](int64_t batch, int64_t positions, int64_t width, int64_t vocabulary) {
          EosArgs args{};
          args.batch = batch;
          args.positions = positions;
          args.width = width;
          args.vocabulary = vocabulary;
          return function(args);
        },
        py::arg("batch"), py::arg("positions"), py::arg("width"), py::arg("vocabulary"));
  };
  define_workspace("cuda_eos_scan_workspace", cuda::eos_scan_workspace);
  define_workspace("cuda_eos_probability_workspace", cuda::eos_probability_workspace);
  m.def(
      "cuda_eos_scan",
      [](uintptr_t hidden, uintptr_t weight, uintptr_t bias, uintptr_t witness, uintptr_t first, uintptr_t workspace,
         int64_t workspace_bytes, int64_t batch, int64_t positions, int64_t width, int64_t vocabulary,
         int64_t witness_count, int64_t hidden_stride_image, int64_t hidden_stride_position, int64_t weight_stride_row,
         int64_t eos_id, int64_t first_round, int dtype, uintptr_t stream) {
        EosArgs args{};
        args.hidden = pointer<const void>(hidden);
        args.weight = pointer<const void>(weight);
        args.bias = pointer<const float>(bias);
        args.witness = pointer<const int32_t>(witness);
        args.first = pointer<int32_t>(first);
        args.workspace = pointer<void>(workspace);
        args.workspace_bytes = workspace_bytes;
        args.batch = batch;
        args.positions = positions;
        args.width = width;
        args.vocabulary = vocabulary;
        args.witness_count = witness_count;
        args.hidden_stride_image = hidden_stride_image;
        args.hidden_stride_position = hidden_stride_position;
        args.weight_stride_row = weight_stride_row;
        args.eos_id = eos_id;
        args.first_round = first_round;
        args.dtype = static_cast<DType>(dtype);
        raise_on_error("eos_scan", cuda::eos_scan(args, pointer<void>(stream)));
      },
      py::call_guard<py::gil_scoped_release>(), py::arg("hidden"), py::arg("weight"), py::arg("bias"),
      py::arg("witness"), py::arg("first"), py::arg("workspace"), py::arg("workspace_bytes"), py::arg("batch"),
      py::arg("positions"), py::arg("width"), py::arg("vocabulary"), py::arg("witness_count"),
      py::arg("hidden_stride_image"), py::arg("hidden_stride_position"), py::arg("weight_stride_row"),
      py::arg("eos_id"), py::arg("first_round"), py::arg("dtype"), py::arg("stream"));
  m.def(
      "cuda_eos_probability",
      [](uintptr_t hidden, uintptr_t weight, uintptr_t bias, uintptr_t probability, uintptr_t maximum, uintptr_t sum,
         uintptr_t workspace, int64_t workspace_bytes, int64_t batch, int64_t positions, int64_t width,
         int64_t vocabulary, int64_t hidden_stride_image, int64_t hidden_stride_position, int64_t weight_stride_row,
         int64_t eos_id, int dtype, uintptr_t stream) {
        EosArgs args{};
        args.hidden = pointer<const void>(hidden);
        args.weight = pointer<const void>(weight);
        args.bias = pointer<const float>(bias);
        args.probability = pointer<float>(probability);
        args.maximum = pointer<float>(maximum);
        args.sum = pointer<float>(sum);
        args.workspace = pointer<void>(workspace);
        args.workspace_bytes = workspace_bytes;
        args.batch = batch;
        args.positions = positions;
        args.width = width;
        args.vocabulary = vocabulary;
        args.hidden_stride_image = hidden_stride_image;
        args.hidden_stride_position = hidden_stride_position;
        args.weight_stride_row = weight_stride_row;
        args.eos_id = eos_id;
        args.dtype = static_cast<DType>(dtype);
        raise_on_error("eos_probability", cuda::eos_probability(args, pointer<void>(stream)));
      },
      py::call_guard<py::gil_scoped_release>(), py::arg("hidden"), py::arg("weight"), py::arg("bias"),
      py::arg("probability"), py::arg("maximum"), py::arg("sum"), py::arg("workspace"), py::arg("workspace_bytes"),
      py::arg("batch"), py::arg("positions"), py::arg("width"), py::arg("vocabulary"), py::arg("hidden_stride_image"),
      py::arg("hidden_stride_position"), py::arg("weight_stride_row"), py::arg("eos_id"), py::arg("dtype"),
      py::arg("stream"));
  m.def(
      "cuda_eos_backward_fits", [](int dtype) { return cuda::eos_backward_fits(static_cast<DType>(dtype)); },
      "Whether the current device can run cuda_eos_probability_backward.", py::arg("dtype"));
  m.def(
      "cuda_eos_backward_workspace",
      [](int64_t batch, int64_t positions, int64_t width, int64_t vocabulary) {
        EosGradArgs args{};
        args.batch = batch;
        args.positions = positions;
        args.width = width;
        args.vocabulary = vocabulary;
        return cuda::eos_backward_workspace(args);
      },
      py::arg("batch"), py::arg("positions"), py::arg("width"), py::arg("vocabulary"));
  m.def(
      "cuda_eos_probability_backward",
      [](uintptr_t hidden, uintptr_t weight, uintptr_t bias, uintptr_t grad, uintptr_t probability, uintptr_t maximum,
         uintptr_t sum, uintptr_t grad_hidden, uintptr_t grad_weight, uintptr_t grad_bias, uintptr_t workspace,
         int64_t workspace_bytes, int64_t batch, int64_t positions, int64_t width, int64_t vocabulary,
         int64_t hidden_stride_image, int64_t hidden_stride_position, int64_t weight_stride_row, int64_t eos_id,
         int64_t block_rows, int dtype, uintptr_t stream) {
        EosGradArgs args{};
        args.hidden = pointer<const void>(hidden);
        args.weight = pointer<const void>(weight);
        args.bias = pointer<const float>(bias);
        args.grad = pointer<const float>(grad);
        args.probability = pointer<const float>(probability);
        args.maximum = pointer<const float>(maximum);
        args.sum = pointer<const float>(sum);
        args.grad_hidden = pointer<void>(grad_hidden);
        args.grad_weight = pointer<void>(grad_weight);
        args.grad_bias = pointer<float>(grad_bias);
        args.workspace = pointer<void>(workspace);
        args.workspace_bytes = workspace_bytes;
        args.batch = batch;
        args.positions = positions;
        args.width = width;
        args.vocabulary = vocabulary;
        args.hidden_stride_image = hidden_stride_image;
        args.hidden_stride_position = hidden_stride_position;
        args.weight_stride_row = weight_stride_row;
        args.eos_id = eos_id;
        args.block_rows = block_rows;
        args.dtype = static_cast<DType>(dtype);
        raise_on_error("eos_probability_backward", cuda::eos_probability_backward(args, pointer<void>(stream)));
      },
      py::call_guard<py::gil_scoped_release>(), py::arg("hidden"), py::arg("weight"), py::arg("bias"), py::arg("grad"),
      py::arg("probability"), py::arg("maximum"), py::arg("sum"), py::arg("grad_hidden"), py::arg("grad_weight"),
      py::arg("grad_bias"), py::arg("workspace"), py::arg("workspace_bytes"), py::arg("batch"), py::arg("positions"),
      py::arg("width"), py::arg("vocabulary"), py::arg("hidden_stride_image"), py::arg("hidden_stride_position"),
      py::arg("weight_stride_row"), py::arg("eos_id"), py::arg("block_rows"), py::arg("dtype"), py::arg("stream"));
}

}  // namespace dove::bindings
