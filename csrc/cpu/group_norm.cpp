#include "dove/group_norm.h"

#include "group_norm_layout.h"
#include "isa.h"

namespace dove::cpu {

DOVE_DECLARE(group_norm, GroupNormArgs)

int64_t group_norm_workspace(const GroupNormArgs& args) { return GroupNormLayout(args, nullptr).bytes; }

Status group_norm(const GroupNormArgs& args) {
  if (args.dtype != DType::kFloat32 && args.dtype != DType::kBFloat16) return Status::kUnsupportedDType;
  if (args.parameters != DType::kFloat32) return Status::kUnsupportedDType;
  if (args.batch < 0 || args.pixels < 1 || args.channels < 1 || args.groups < 1 || args.channels % args.groups != 0) {
    return Status::kUnsupportedShape;
  }
  if (args.workspace_bytes < group_norm_workspace(args)) return Status::kWorkspaceTooSmall;
  DOVE_DISPATCH(group_norm, args);
}

}  // namespace dove::cpu
