#include "dove/eos.h"

#include "bindings.h"

namespace dove::bindings {

void bind_eos(py::module_& m) {
  m.def(
      "cpu_eos_workspace",
      [](int64_t batch, int64_t positions, int64_t width, int64_t vocabulary, int threads) {
        EosArgs args{};
        args.batch = batch;
        args.positions = positions;
        args.width = width;
        args.vocabulary = vocabulary;
        args.threads = threads;
        return cpu::eos_workspace(args);
      },
      "Bytes of workspace for cpu_eos_scan and cpu_eos_probability.", py::arg("batch"), py::arg("positions"),
      py::arg("width"), py::arg("vocabulary"), py::arg("threads"));
  m.def(
      "cpu_eos_scan",
      [](uintptr_t hidden, uintptr_t weight, uintptr_t bias, uintptr_t witness, uintptr_t first, uintptr_t workspace,
         int64_t workspace_bytes, int64_t batch, int64_t positions, int64_t width, int64_t vocabulary,
         int64_t witness_count, int64_t hidden_stride_image, int64_t hidden_stride_position, int64_t weight_stride_row,
         int64_t eos_id, int64_t first_round, int dtype, int threads) {
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
        args.threads = threads;
        raise_on_error("eos_scan", cpu::eos_scan(args));
      },
      py::call_guard<py::gil_scoped_release>(), py::arg("hidden"), py::arg("weight"), py::arg("bias"),
      py::arg("witness"), py::arg("first"), py::arg("workspace"), py::arg("workspace_bytes"), py::arg("batch"),
      py::arg("positions"), py::arg("width"), py::arg("vocabulary"), py::arg("witness_count"),
      py::arg("hidden_stride_image"), py::arg("hidden_stride_position"), py::arg("weight_stride_row"),
      py::arg("eos_id"), py::arg("first_round"), py::arg("dtype"), py::arg("threads"));
  m.def(
      "cpu_eos_probability",
      [](uintptr_t hidden, uintptr_t weight, uintptr_t bias, uintptr_t probability, uintptr_t maximum, uintptr_t sum,
         uintptr_t workspace, int64_t workspace_bytes, int64_t batch, int64_t positions, int64_t width,
         int64_t vocabulary, int64_t hidden_stride_image, int64_t hidden_stride_position, int64_t weight_stride_row,
         int64_t eos_id, int dtype, int threads) {
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
        args.threads = threads;
        raise_on_error("eos_probability", cpu::eos_probability(args));
      },
      py::call_guard<py::gil_scoped_release>(), py::arg("hidden"), py::arg("weight"), py::arg("bias"),
      py::arg("probability"), py::arg("maximum"), py::arg("sum"), py::arg("workspace"), py::arg("workspace_bytes"),
      py::arg("batch"), py::arg("positions"), py::arg("width"), py::arg("vocabulary"), py::arg("hidden_stride_image"),
      py::arg("hidden_stride_position"), py::arg("weight_stride_row"), py::arg("eos_id"), py::arg("dtype"),
      py::arg("threads"));
}

}  // namespace dove::bindings
