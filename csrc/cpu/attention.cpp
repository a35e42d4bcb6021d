#include "dove/attention.h"

#include "isa.h"
#include "kernels/attention_plan.h"
#include "sizes.h"

namespace dove::cpu {

DOVE_DECLARE(plan_attention, AttentionPlanArgs)
DOVE_DECLARE(run_attention, AttentionPlanArgs)
DOVE_DECLARE(plan_attention_backward, AttentionPlanArgs)
DOVE_DECLARE(run_attention_backward, AttentionPlanArgs)

namespace {

Status plan_forward(const AttentionPlanArgs& args) { DOVE_DISPATCH(plan_attention, args); }
Status run_forward(const AttentionPlanArgs& args) { DOVE_DISPATCH(run_attention, args); }
Status plan_backward(const AttentionPlanArgs& args) { DOVE_DISPATCH(plan_attention_backward, args); }
Status run_backward(const AttentionPlanArgs& args) { DOVE_DISPATCH(run_attention_backward, args); }

// The sequences' own lengths: each within its operand, and rotated positions within the table.
Status check_lengths(const AttentionArgs& a, AttentionPlan* plan) {
  const bool packed = a.cu_seqlens_q != nullptr;
  if (packed && (a.cu_seqlens_q[0] != 0 || a.cu_seqlens_k[0] != 0)) return Status::kBadLengths;
  *plan = {};
  for (int64_t b = 0; b < a.batch; ++b) {
    const int64_t queries = packed ? int64_t{a.cu_seqlens_q[b + 1]} - a.cu_seqlens_q[b] : a.len_q;
    const int64_t keys = packed ? int64_t{a.cu_seqlens_k[b + 1]} - a.cu_seqlens_k[b] : a.len_k;
    if (queries < 0 || keys < 0) return Status::kBadLengths;
    if (a.kv_lens != nullptr && (a.kv_lens[b] < 0 || a.kv_lens[b] > keys)) return Status::kBadLengths;
    // With more queries than keys the first ones would stand at negative positions, unless all see every key.
    const bool before_first = queries > keys && a.prefix < keys;
    if (a.rotary != nullptr && (before_first || keys > a.rotary_rows || queries > a.rotary_rows)) {
      return Status::kBadLengths;
    }
    if (keys > plan->max_keys) plan->max_keys = keys;
    if (queries > plan->max_queries) plan->max_queries = queries;
  }
  // Rows behind the last sequence would be left unwritten.
  if (packed && (a.cu_seqlens_q[a.batch] != a.len_q || a.cu_seqlens_k[a.batch] != a.len_k)) return Status::kBadLengths;
  return Status::kOk;
}

Status check(const AttentionArgs& a, AttentionPlan* plan) {
  if (a.dtype != DType::kFloat32 && a.dtype != DType::kBFloat16) return Status::kUnsupportedDType;
  if (a.head_dim < 16 || a.head_dim > 256 || a.head_dim % 16 != 0) return Status::kUnsupportedShape;
  for (const int64_t length : {a.len_q, a.len_k}) {
    if (!countable({a.batch, a.heads, length, a.head_dim}) || !countable({a.threads, length, a.head_dim})) {
      return Status::kUnsupportedShape;
    }
  }
  if (a.prefix < 0) return Status::kUnsupportedShape;
  if (a.rotary != nullptr && (a.rotary_dim < 0 || a.rotary_dim > a.head_dim || a.rotary_dim % 2 != 0)) {
    return Status::kUnsupportedShape;
  }
  if (!(a.scale > 0) || a.threads < 1) return Status::kUnsupportedShape;
  return check_lengths(a, plan);
}

Status call(const AttentionArgs& args, Status (*make_plan)(const AttentionPlanArgs&),
            Status (*run)(const AttentionPlanArgs&)) {
  AttentionPlan plan;
  if (const Status status = check(args, &plan); status != Status::kOk) return status;
  if (const Status status = make_plan({&args, &plan}); status != Status::kOk) return status;
  if (args.workspace_bytes < plan.thread_bytes * args.threads) return Status::kWorkspaceTooSmall;
  return run({&args, &plan});
}

int64_t workspace(const AttentionArgs& args, Status (*make_plan)(const AttentionPlanArgs&)) {
  AttentionPlan plan;
  if (check(args, &plan) != Status::kOk) return 0;  // the call itself will say what is wrong
  return make_plan({&args, &plan}) == Status::kOk ? plan.thread_bytes * args.threads : 0;
}

}  // namespace

int64_t attention_workspace(const AttentionArgs& args) { return workspace(args, plan_forward); }

Status attention(const AttentionArgs& args) { return call(args, plan_forward, run_forward); }

int64_t attention_backward_workspace(const AttentionArgs& args) { return workspace(args, plan_backward); }

Status attention_backward(const AttentionArgs& args) { return call(args, plan_backward, run_backward); }

}  // namespace dove::cpu
