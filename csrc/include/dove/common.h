// What every kernel of the contract shares: element types, status codes, strides.
//
// Rules of the contract: raw pointers and element strides in, a Status out; the caller owns every
// buffer including the workspace; no framework header, no exception and no allocation of outputs below
// this line. A kernel reads and writes only what its shapes and lengths name, so padding may hold NaN.
// Fields that an op does not speak of stay zero: start from `Args args{}`. A workspace is aligned to 64 bytes.
#pragma once

#include <cstddef>
#include <cstdint>

namespace dove {

enum class DType : int32_t { kFloat32 = 0, kBFloat16 = 1, kFloat16 = 2 };

enum class Status : int32_t {
  kOk = 0,
  kUnsupportedDType = 1,
  kUnsupportedShape = 2,
  kWorkspaceTooSmall = 3,
  kBadLengths = 4,
  kBadIndex = 5,
  kLaunchFailed = 6,
};

// One English clause per status; the binding prefixes it with the op's name. That of kLaunchFailed says what CUDA
// said of the calling thread's last failed launch, until its next one.
const char* status_message(Status status);

// For launchers: keeps what CUDA said for status_message. Returns kLaunchFailed.
Status launch_failed(const char* why);

}  // namespace dove
