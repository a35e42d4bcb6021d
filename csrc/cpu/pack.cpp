#include "dove/pack.h"

#include "isa.h"
#include "sizes.h"

namespace dove::cpu {

DOVE_DECLARE(pack, PackArgs)
DOVE_DECLARE(unpack, PackArgs)
DOVE_DECLARE(zero_tail, ZeroTailArgs)

namespace {

Status check(const PackArgs& a) {
  if (a.element_bytes != 2 && a.element_bytes != 4) return Status::kUnsupportedDType;
  if (!countable({a.batch, a.max_len, a.width})) return Status::kUnsupportedShape;
  if (a.cu_seqlens[0] != 0) return Status::kBadLengths;
  for (int64_t b = 0; b < a.batch; ++b) {
    const int64_t length = int64_t{a.cu_seqlens[b + 1]} - a.cu_seqlens[b];
    if (length < 0 || length > a.max_len) return Status::kBadLengths;
  }
  return Status::kOk;
}

}  // namespace

Status pack(const PackArgs& args) {
  if (const Status status = check(args); status != Status::kOk) return status;
  DOVE_DISPATCH(pack, args);
}

Status unpack(const PackArgs& args) {
  if (const Status status = check(args); status != Status::kOk) return status;
  DOVE_DISPATCH(unpack, args);
}

Status zero_tail(const ZeroTailArgs& args) {
  if (args.element_bytes != 2 && args.element_bytes != 4) return Status::kUnsupportedDType;
  if (!countable({args.batch, args.max_len, args.width})) return Status::kUnsupportedShape;
  for (int64_t b = 0; b < args.batch; ++b) {
    if (args.lengths[b] < 0 || args.lengths[b] > args.max_len) return Status::kBadLengths;
  }
  DOVE_DISPATCH(zero_tail, args);
}

}  // namespace dove::cpu
