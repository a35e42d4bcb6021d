#include "dove/eos.h"

#include "eos_layout.h"
#include "isa.h"
#include "sizes.h"

namespace dove::cpu {

DOVE_DECLARE(eos_scan, EosArgs)
DOVE_DECLARE(eos_probability, EosArgs)

namespace {

bool shaped(const EosArgs& a) {
  return a.positions <= INT32_MAX && a.vocabulary >= 1 && a.vocabulary <= INT32_MAX &&
         countable({a.batch, a.positions, a.width}) && countable({a.vocabulary, a.width});
}

Status check(const EosArgs& a) {
  if (a.dtype != DType::kFloat32 && a.dtype != DType::kBFloat16) return Status::kUnsupportedDType;
  if (!shaped(a)) return Status::kUnsupportedShape;
  if (a.eos_id < 0 || a.eos_id >= a.vocabulary) return Status::kBadIndex;
  for (int64_t i = 0; i < a.witness_count; ++i) {
    if (a.witness[i] < 0 || a.witness[i] >= a.vocabulary) return Status::kBadIndex;
  }
  if (a.workspace_bytes < eos_workspace(a)) return Status::kWorkspaceTooSmall;
  return Status::kOk;
}

}  // namespace

int64_t eos_workspace(const EosArgs& args) {
  return shaped(args) ? EosLayout(args, nullptr).bytes : 0;  // the call itself will say what is wrong
}

Status eos_scan(const EosArgs& args) {
  if (const Status status = check(args); status != Status::kOk) return status;
  DOVE_DISPATCH(eos_scan, args);
}

Status eos_probability(const EosArgs& args) {
  if (const Status status = check(args); status != Status::kOk) return status;
  DOVE_DISPATCH(eos_probability, args);
}

}  // namespace dove::cpu
