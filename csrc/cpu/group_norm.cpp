#include "dove/group_norm.h"

#include "group_norm_layout.h"
#include "isa.h"

namespace dove::cpu {

DOVE_DECLARE(group_norm, GroupNormArgs)
DOVE_DECLARE(group_norm_backward, GroupNormGradArgs)

namespace {

template <class Args>
Status check(const Args& args, int64_t workspace_bytes) {
  if (args.dtype != DType::kFloat32 && args.dtype != DType::kBFloat16) return Status::kUnsupportedDType;
  if (args.parameters != DType::kFloat32) return Status::kUnsupportedDType;
  if (args.batch < 0 || args.pixels < 1 || args.channels < 1 || args.groups < 1 || args.channels % args.groups != 0) {
    return Status::kUnsupportedShape;
  }
  return args.workspace_bytes < workspace_bytes ? Status::kWorkspaceTooSmall : Status::kOk;
}

}  // namespace

int64_t group_norm_workspace(const GroupNormArgs& args) { return GroupNormLayout(args, nullptr).bytes; }

Status group_norm(const GroupNormArgs& args) {
  if (const Status status = check(args, group_norm_workspace(args)); status != Status::kOk) return status;
  DOVE_DISPATCH(group_norm, args);
}

int64_t group_norm_backward_workspace(const GroupNormGradArgs& args) {
  return GroupNormBackwardLayout(args, nullptr).bytes;
}

Status group_norm_backward(const GroupNormGradArgs& args) {
  if (const Status status = check(args, group_norm_backward_workspace(args)); status != Status::kOk) return status;
  DOVE_DISPATCH(group_norm_backward, args);
}

}  // namespace dove::cpu
