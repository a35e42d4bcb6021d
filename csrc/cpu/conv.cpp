#include "conv_layout.h"
#include "isa.h"
#include "pages.h"
#include "sizes.h"

namespace dove::cpu {

DOVE_DECLARE(conv3x3, Conv3x3Args)
DOVE_DECLARE(conv3x3_pack, Conv3x3PackArgs)

namespace {

bool served(int64_t channels_in, int64_t channels_out) {
  return channels_in > 0 && channels_out > 0 && channels_in % kConv3x3Channels == 0 &&
         channels_out % kConv3x3Channels == 0 && countable({channels_in, channels_out});
}

bool shaped(const Conv3x3Args& a) {
  return served(a.channels_in, a.channels_out) && a.height >= 1 && a.width >= 1 &&
         countable({a.batch, a.height, a.width, a.channels_in}) &&
         countable({a.batch, a.height, a.width, a.channels_out}) &&
         countable({a.threads > 1 ? a.threads : 1, a.channels_in});
}

}  // namespace

int64_t conv3x3_packed_values(int64_t channels_in, int64_t channels_out) {
  return served(channels_in, channels_out) ? Conv3x3Layout::kPoints * channels_in * channels_out : 0;
}

Status conv3x3_pack(const Conv3x3PackArgs& args) {
  if (!served(args.channels_in, args.channels_out)) return Status::kUnsupportedShape;
  DOVE_DISPATCH(conv3x3_pack, args);
}

int64_t conv3x3_workspace(const Conv3x3Args& args) {
  return shaped(args) ? Conv3x3Layout(args).bytes(args.threads) : 0;  // the call itself will say what is wrong
}

Status conv3x3(const Conv3x3Args& args) {
  if (args.dtype != DType::kFloat32 && args.dtype != DType::kBFloat16) return Status::kUnsupportedDType;
  if (!shaped(args)) return Status::kUnsupportedShape;
  if (args.mean != nullptr && (args.groups < 1 || args.channels_in % args.groups != 0))
    return Status::kUnsupportedShape;
  if (args.workspace_bytes < conv3x3_workspace(args)) return Status::kWorkspaceTooSmall;
  const int64_t value_bytes = args.dtype == DType::kFloat32 ? 4 : 2;
  expect_large_write(args.out, args.batch * args.height * args.width * args.channels_out * value_bytes);
  DOVE_DISPATCH(conv3x3, args);
}

}  // namespace dove::cpu
