// Causal, prefix and full attention with partial rotary embedding, over padded, packed or cached keys.
//
// out[i] = sum_j softmax_j(scale * q'[i] . k'[j]) v[j] over the keys j that query i sees, where ' rotates the
// first rotary_dim dimensions by the row's position (half-rotation layout: dimension d pairs with
// d + rotary_dim / 2). Query i of a sequence stands at position p = (its keys - its queries) + i and sees
// key j iff j < kv_lens[b] and (j <= p or j < prefix). Where a sequence has more queries than keys and all of them see
// every key (prefix is at least its keys), query i stands at position i: its keys are the first of its positions. A
// query that sees no key gives zeros. Keys that no query of the sequence sees are never read, so they may hold NaN.
#pragma once

#include "dove/common.h"

namespace dove {

// Rows of one operand, [sequence, position, head, dimension]; the last is dense, strides count elements.
// Packed operands have no sequence stride: a sequence starts at its cu_seqlens entry.
struct AttentionRows {
  void* data;
  int64_t stride_b;
  int64_t stride_n;
  int64_t stride_h;
};

struct AttentionArgs {
  DType dtype;  // of q, k, v, out and their gradients
  int64_t batch;
  int64_t heads;
  int64_t head_dim;  // a multiple of 16, at most 256 (CUDA: 128)
  int64_t len_q;     // padded: positions of every sequence; packed: rows of all sequences together
  int64_t len_k;
  int64_t prefix;  // keys that every query sees; 0 is causal, at least len_k is full attention
  float scale;     // above 0

  const int32_t* cu_seqlens_q;  // packed: [batch + 1], starts at 0, never falls; else null
  const int32_t* cu_seqlens_k;
  const int32_t* kv_lens;  // padded: [batch] in 0..len_k, or null

  const float* rotary;  // [rotary_rows, rotary_dim] dense: cosines, then sines; or null
  int64_t rotary_dim;   // even, at most head_dim
  int64_t rotary_rows;  // a row for every position, at least the longest sequence of keys

  AttentionRows q, k, v;
  AttentionRows out;  // forward: written; backward: read
  float* lse;         // natural log of the softmax's denominator: padded [batch, heads, len_q], packed [heads, len_q]

  // Backward only. Every element of the three gradients is written.
  AttentionRows grad_out, grad_q, grad_k, grad_v;

  int threads;
  void* workspace;  // attention_workspace() or attention_backward_workspace() bytes, aligned to 64
  int64_t workspace_bytes;
};

namespace cpu {
// Bytes of workspace for `args` (its workspace fields are not looked at).
int64_t attention_workspace(const AttentionArgs& args);
Status attention(const AttentionArgs& args);
int64_t attention_backward_workspace(const AttentionArgs& args);
Status attention_backward(const AttentionArgs& args);
}  // namespace cpu

// Lengths are on the device and are clamped to the operands there instead of being refused. `threads` is not used.
// Rows of 16-bit operands start at multiples of 16 bytes; head_dim is at most 128. Gradients are the same bits in
// every run.
namespace cuda {
Status attention(const AttentionArgs& args, void* stream);  // needs no workspace
int64_t attention_backward_workspace(const AttentionArgs& args);
Status attention_backward(const AttentionArgs& args, void* stream);
}  // namespace cuda

}  // namespace dove
