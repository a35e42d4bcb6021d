#include "conv_layout.h"
#include "isa.h"
#include "pages.h"

namespace dove::cpu {

DOVE_DECLARE(conv3x3, Conv3x3Args)
DOVE_DECLARE(conv3x3_pack, Conv3x3PackArgs)

namespace {

bool served(int64_t channels_in, int64_t channels_out) {
  return channels_in > 0 && channels_out > 0 && channels_in % kConv3x3Channels == 0 &&
         channels_out % kConv3x3Channels == 0;
}

}  // namespace

int64_t conv3x3_packed_values(int64_t channels_in, int64_t channels_out) {
  return Conv3x3Layout::kPoints * channels_in * channels_out;
}

Status conv3x3_pack(const Conv3x3PackArgs& args) {
  if (!served(args.channels_in, args.channels_out)) return Status::kUnsupportedShape;
  DOVE_DISPATCH(conv3x3_pack, args);
}

int64_t conv3x3_workspace(const Conv3x3Args& args) { return Conv3x3Layout(args).bytes(args.threads); }

Status conv3x3(const Conv3x3Args& args) {
  if (args.dtype != DType::kFloat32 && args.dtype != DType::kBFloat16) return Status::kUnsupportedDType;
  if (!served(args.channels_in, args.channels_out) || args.batch < 0 || args.height < 1 || args.width < 1) {
    return Status::kUnsupportedShape;
  }
  if (args.mean != nullptr && (args.groups < 1 || args.channels_in % args.groups != 0))
    return Status::kUnsupportedShape;
  if (args.workspace_bytes < conv3x3_workspace(args)) return Status::kWorkspaceTooSmall;
  const int64_t value_bytes = args.dtype == DType::kFloat32 ? 4 : 2;
  expect_large_write(args.out, args.batch * args.height * args.width * args.channels_out * value_bytes);
  DOVE_DISPATCH(conv3x3, args);
}

}  // namespace dove::cpu
