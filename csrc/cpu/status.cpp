#include <cstdio>

#include "dove/common.h"

namespace dove {
namespace {

thread_local char launch_message[384] = "the CUDA launch failed";

}  // namespace

Status launch_failed(const char* why) {
  std::snprintf(launch_message, sizeof launch_message,
                "the CUDA launch failed: %s; an earlier kernel may be the cause (CUDA_LAUNCH_BLOCKING=1 shows it where "
                "it fails), or a GPU for which this build has no code (`dove info` names its architectures)",
                why);
  return Status::kLaunchFailed;
}

const char* status_message(Status status) {
  switch (status) {
    case Status::kOk:
      return "ok";
    case Status::kUnsupportedDType:
      return "this dtype has no kernel";
    case Status::kUnsupportedShape:
      return "this shape has no kernel";
    case Status::kWorkspaceTooSmall:
      return "the workspace is too small";
    case Status::kBadLengths:
      return "lengths or cu_seqlens are out of range";
    case Status::kBadIndex:
      return "an index is out of range";
    case Status::kLaunchFailed:
      return launch_message;
  }
  return "unknown status";
}

}  // namespace dove
