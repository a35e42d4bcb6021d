#include "bindings.h"
#include "dove/attention.h"

namespace dove::bindings {
namespace {

// (address, stride_b, stride_n, stride_h)
AttentionRows rows(const py::tuple& t) {
  if (t.size() != 4) throw std::invalid_argument("attention rows are (address, stride_b, stride_n, stride_h)");
  return {pointer<void>(t[0].cast<uintptr_t>()), t[1].cast<int64_t>(), t[2].cast<int64_t>(), t[3].cast<int64_t>()};
}

}  // namespace

void bind_attention_args(py::module_& m) {
  // Write-only from Python: dove_ext/ops/attention.py fills it for one call.
  py::class_<AttentionArgs> args(m, "AttentionArgs", "Arguments of one attention call; see dove/attention.h.",
                                 py::module_local());
  args.def(py::init([] { return AttentionArgs{}; }));
  args.def_property("dtype", nullptr, [](AttentionArgs& a, int code) { a.dtype = static_cast<DType>(code); });
  args.def_readwrite("batch", &AttentionArgs::batch);
  args.def_readwrite("heads", &AttentionArgs::heads);
  args.def_readwrite("head_dim", &AttentionArgs::head_dim);
  args.def_readwrite("len_q", &AttentionArgs::len_q);
  args.def_readwrite("len_k", &AttentionArgs::len_k);
  args.def_readwrite("prefix", &AttentionArgs::prefix);
  args.def_readwrite("scale", &AttentionArgs::scale);
  args.def_readwrite("rotary_dim", &AttentionArgs::rotary_dim);
  args.def_readwrite("rotary_rows", &AttentionArgs::rotary_rows);
  args.def_readwrite("threads", &AttentionArgs::threads);
  args.def_readwrite("workspace_bytes", &AttentionArgs::workspace_bytes);
  const auto address = [&args](const char* name, auto field) {
    args.def_property(name, nullptr, [field](AttentionArgs& a, uintptr_t address) {
      a.*field = reinterpret_cast<std::decay_t<decltype(a.*field)>>(address);
    });
  };
  address("cu_seqlens_q", &AttentionArgs::cu_seqlens_q);
  address("cu_seqlens_k", &AttentionArgs::cu_seqlens_k);
  address("kv_lens", &AttentionArgs::kv_lens);
  address("rotary", &AttentionArgs::rotary);
  address("lse", &AttentionArgs::lse);
  address("workspace", &AttentionArgs::workspace);
  const auto operand = [&args](const char* name, AttentionRows AttentionArgs::* field) {
    args.def_property(name, nullptr, [field](AttentionArgs& a, const py::tuple& t) { a.*field = rows(t); });
  };
  operand("q", &AttentionArgs::q);
  operand("k", &AttentionArgs::k);
  operand("v", &AttentionArgs::v);
  operand("out", &AttentionArgs::out);
  operand("grad_out", &AttentionArgs::grad_out);
  operand("grad_q", &AttentionArgs::grad_q);
  operand("grad_k", &AttentionArgs::grad_k);
  operand("grad_v", &AttentionArgs::grad_v);
}

}  // namespace dove::bindings
