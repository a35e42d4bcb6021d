// pack / unpack / zero_tail: one task is one image; rows are moved as bytes, so every 2- and 4-byte dtype is served.
#include "dove/pack.h"

#include <cstring>

#include "../parallel.h"

namespace dove::cpu::DOVE_ISA {
namespace {

const char* padded_row(const void* base, const PackArgs& a, int64_t b, int64_t k) {
  return static_cast<const char*>(base) + (b * a.padded_stride_b + k * a.padded_stride_k) * a.element_bytes;
}

}  // namespace

Status pack(const PackArgs& a) {
  const int64_t row_bytes = a.width * a.element_bytes;
  parallel_for(a.batch, a.threads, [&](int64_t b) {
    const int64_t begin = a.cu_seqlens[b];
    const int64_t length = a.cu_seqlens[b + 1] - begin;
    char* to = static_cast<char*>(a.target) + begin * row_bytes;
    for (int64_t k = 0; k < length; ++k) {
      std::memcpy(to + k * row_bytes, padded_row(a.source, a, b, k), row_bytes);
    }
  });
  return Status::kOk;
}

Status unpack(const PackArgs& a) {
  const int64_t row_bytes = a.width * a.element_bytes;
  parallel_for(a.batch, a.threads, [&](int64_t b) {
    const int64_t begin = a.cu_seqlens[b];
    const int64_t length = a.cu_seqlens[b + 1] - begin;
    const char* from = static_cast<const char*>(a.source) + begin * row_bytes;
    for (int64_t k = 0; k < a.max_len; ++k) {
      char* to = const_cast<char*>(padded_row(a.target, a, b, k));
      if (k < length) {
        std::memcpy(to, from + k * row_bytes, row_bytes);
      } else {
        std::memset(to, 0, row_bytes);
      }
    }
  });
  return Status::kOk;
}

Status zero_tail(const ZeroTailArgs& a) {
  const int64_t row_bytes = a.width * a.element_bytes;
  parallel_for(a.batch, a.threads, [&](int64_t b) {
    const char* from = static_cast<const char*>(a.source) + b * a.source_stride_b * a.element_bytes;
    char* to = static_cast<char*>(a.target) + b * a.max_len * row_bytes;
    const int64_t length = a.lengths[b];
    for (int64_t k = 0; k < length; ++k) {
      std::memcpy(to + k * row_bytes, from + k * a.source_stride_k * a.element_bytes, row_bytes);
    }
    std::memset(to + length * row_bytes, 0, (a.max_len - length) * row_bytes);
  });
  return Status::kOk;
}

}  // namespace dove::cpu::DOVE_ISA
