#include "dove/group_norm.h"

#include "group_norm_layout.h"
#include "isa.h"
#include "sizes.h"

namespace dove::cpu {

DOVE_DECLARE(group_norm, GroupNormArgs)
DOVE_DECLARE(group_norm_backward, GroupNormGradArgs)

namespace {

template <class Args>
bool shaped(const Args& args) {
  return args.pixels >= 1 && args.channels >= 1 && args.groups >= 1 && args.channels % args.groups == 0 &&
         countable({args.batch, args.pixels, args.channels}) &&
         countable({args.threads > 1 ? args.threads : 1, args.channels});
}

template <class Args>
Status check(const Args& args, int64_t (*workspace)(const Args&)) {
  if (args.dtype != DType::kFloat32 && args.dtype != DType::kBFloat16) return Status::kUnsupportedDType;
  if (args.parameters != DType::kFloat32) return Status::kUnsupportedDType;
  if (!shaped(args)) return Status::kUnsupportedShape;
  return args.workspace_bytes < workspace(args) ? Status::kWorkspaceTooSmall : Status::kOk;
}

}  // namespace

int64_t group_norm_workspace(const GroupNormArgs& args) {
  return shaped(args) ? GroupNormLayout(args, nullptr).bytes : 0;  // the call itself will say what is wrong
}

Status group_norm(const GroupNormArgs& args) {
  if (const Status status = check(args, group_norm_workspace); status != Status::kOk) return status;
  DOVE_DISPATCH(group_norm, args);
}

int64_t group_norm_backward_workspace(const GroupNormGradArgs& args) {
  return shaped(args) ? GroupNormBackwardLayout(args, nullptr).bytes : 0;
}

Status group_norm_backward(const GroupNormGradArgs& args) {
  if (const Status status = check(args, group_norm_backward_workspace); status != Status::kOk) return status;
  DOVE_DISPATCH(group_norm_backward, args);
}

}  // namespace dove::cpu
