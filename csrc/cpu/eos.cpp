#include "dove/eos.h"

#include "eos_layout.h"
#include "isa.h"

namespace dove::cpu {

DOVE_DECLARE(eos_scan, EosArgs)
DOVE_DECLARE(eos_probability, EosArgs)

namespace {

Status check(const EosArgs& a) {
  if (a.dtype != DType::kFloat32 && a.dtype != DType::kBFloat16) return Status::kUnsupportedDType;
  if (a.batch < 0 || a.positions < 0 || a.positions > INT32_MAX || a.width < 0) return Status::kUnsupportedShape;
  if (a.vocabulary < 1 || a.vocabulary > INT32_MAX) return Status::kUnsupportedShape;
  if (a.eos_id < 0 || a.eos_id >= a.vocabulary) return Status::kBadIndex;
  for (int64_t i = 0; i < a.witness_count; ++i) {
    if (a.witness[i] < 0 || a.witness[i] >= a.vocabulary) return Status::kBadIndex;
  }
  if (a.workspace_bytes < eos_workspace(a)) return Status::kWorkspaceTooSmall;
  return Status::kOk;
}

}  // namespace

int64_t eos_workspace(const EosArgs& args) { return EosLayout(args, nullptr).bytes; }

Status eos_scan(const EosArgs& args) {
  if (const Status status = check(args); status != Status::kOk) return status;
  DOVE_DISPATCH(eos_scan, args);
}

Status eos_probability(const EosArgs& args) {
  if (const Status status = check(args); status != Status::kOk) return status;
  DOVE_DISPATCH(eos_probability, args);
}

}  // namespace dove::cpu
