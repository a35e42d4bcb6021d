// Variable-length packing: padded [B, K, D] <-> packed [T, D] with cu_seqlens [B + 1], and padded [B, K, D] with
// zeros behind each length.
//
// The smallest op of the house, and the worked example for adding one: contract (this file),
// cpu/pack.cpp (dispatch), cpu/kernels/pack.cpp (kernel, compiled once per instruction set), cuda/pack.cu (kernel and
// launcher), a line each in bindings/arguments.cpp, cpu.cpp and cuda.cpp, dove_ext/ops/pack.py (torch op),
// tests/cases/pack.py (rows).
#pragma once

#include "dove/common.h"

namespace dove {

struct PackArgs {
  const void* source;         // pack: padded rows; unpack: packed rows
  void* target;               // pack: packed rows; unpack: padded rows
  const int32_t* cu_seqlens;  // [batch + 1], starts at 0, never falls
  int64_t batch;
  int64_t max_len;          // K
  int64_t width;            // D
  int64_t element_bytes;    // 2 or 4
  int64_t padded_stride_b;  // elements between images of the padded side; its last dimension is dense
  int64_t padded_stride_k;  // elements between positions of the padded side
  int threads;
  int64_t packed_rows;  // CUDA: rows of the packed side
};

struct ZeroTailArgs {
  const void* source;      // [batch, max_len, width]
  void* target;            // the same, dense
  const int32_t* lengths;  // [batch], 0..max_len
  int64_t batch;
  int64_t max_len;
  int64_t width;
  int64_t element_bytes;    // 2 or 4
  int64_t source_stride_b;  // in elements; the last dimension of source is dense
  int64_t source_stride_k;
  int threads;
};

struct CuSeqlensArgs {
  const int32_t* lengths;  // [batch], none negative
  int32_t* cu_seqlens;     // [batch + 1], written
  int64_t batch;
};

namespace cpu {
// target[cu[b] + i] = source[b, i] for i < cu[b + 1] - cu[b]. The packed side is contiguous.
Status pack(const PackArgs& args);
// target[b, i] = source[cu[b] + i] for i < length, else zero. Every element of target is written.
Status unpack(const PackArgs& args);
// target[b, i] = source[b, i] for i < lengths[b], else zero. Source is not read behind a length.
Status zero_tail(const ZeroTailArgs& args);
}  // namespace cpu

// On the device nobody looks at lengths before the kernel does, since that would wait for it: a length outside
// 0..max_len counts as the nearer of the two, and rows outside the packed side are not moved.
namespace cuda {
Status pack(const PackArgs& args, void* stream);
Status unpack(const PackArgs& args, void* stream);
Status zero_tail(const ZeroTailArgs& args, void* stream);
// cu_seqlens[b] = the sum of lengths before b; [batch] is the sum of all.
Status cu_seqlens(const CuSeqlensArgs& args, void* stream);
}  // namespace cuda

}  // namespace dove
