// Checks and choice of kernel for attention on CUDA.
#include "attention_kernels.h"

namespace dove::cuda {
namespace {

// Rows as the 16-byte loads of the tensor-core kernels want them.
bool aligned(const AttentionRows& r) {
  return reinterpret_cast<uintptr_t>(r.data) % 16 == 0 && (r.stride_b | r.stride_n | r.stride_h) % 8 == 0;
}

Status check(const AttentionArgs& a, bool backward) {
  if (a.dtype != DType::kFloat32 && a.dtype != DType::kBFloat16 && a.dtype != DType::kFloat16) {
    return Status::kUnsupportedDType;
  }
  constexpr int64_t kMost = int64_t{1} << 30;  // positions and tiles are counted in int
  if (a.batch < 0 || a.heads < 0 || a.len_q < 0 || a.len_k < 0 || a.prefix < 0) return Status::kUnsupportedShape;
  if (a.len_q > kMost || a.len_k > kMost || a.batch > kMost || a.heads > 65535) return Status::kUnsupportedShape;
  if (a.head_dim < 16 || a.head_dim > 128 || a.head_dim % 16 != 0) return Status::kUnsupportedShape;
  if (!(a.scale > 0)) return Status::kUnsupportedShape;
  if (a.rotary != nullptr) {
    if (a.rotary_dim < 0 || a.rotary_dim > a.head_dim || a.rotary_dim % 2 != 0) return Status::kUnsupportedShape;
    const bool before_first = a.len_q > a.len_k && a.prefix < a.len_k;
    if (a.cu_seqlens_q == nullptr && (before_first || a.len_k > a.rotary_rows || a.len_q > a.rotary_rows)) {
      return Status::kBadLengths;
    }
  }
  if (a.dtype == DType::kFloat32) return Status::kOk;
  bool all = aligned(a.q) && aligned(a.k) && aligned(a.v) && aligned(a.out);
  if (backward) all = all && aligned(a.grad_out) && aligned(a.grad_q) && aligned(a.grad_k) && aligned(a.grad_v);
  return all ? Status::kOk : Status::kUnsupportedShape;
}

// A table without rows has nothing to turn by: no sequence has keys then.
AttentionArgs without_empty_table(AttentionArgs a) {
  if (a.rotary_rows == 0 || a.rotary_dim == 0) a.rotary = nullptr;
  return a;
}

}  // namespace

Status attention(const AttentionArgs& args, void* stream) {
  if (const Status status = check(args, false); status != Status::kOk) return status;
  const AttentionArgs a = without_empty_table(args);
  return a.dtype == DType::kFloat32 ? attention_forward_float(a, stream) : attention_forward_tensor_cores(a, stream);
}

int64_t attention_backward_workspace(const AttentionArgs& a) {
  const int64_t sequences = a.cu_seqlens_q == nullptr ? a.batch : 1;
  return sequences * a.heads * a.len_q * static_cast<int64_t>(sizeof(float));
}

Status attention_backward(const AttentionArgs& args, void* stream) {
  if (const Status status = check(args, true); status != Status::kOk) return status;
  if (args.workspace_bytes < attention_backward_workspace(args)) return Status::kWorkspaceTooSmall;
  const AttentionArgs a = without_empty_table(args);
  auto* delta = static_cast<float*>(a.workspace);
  return a.dtype == DType::kFloat32 ? attention_backward_float(a, delta, stream)
                                    : attention_backward_tensor_cores(a, delta, stream);
}

}  // namespace dove::cuda
