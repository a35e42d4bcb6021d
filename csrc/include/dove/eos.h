// End of sequence from hidden states and a vocabulary head: the first position whose arg-max is EOS, and the
// probability of EOS at every position. No [batch, positions, vocabulary] tensor exists at any time.
//
//   logit(b, m, v) = sum_d hidden[b, m, d] * weight[v, d] + bias[v], summed in float32
//
// A given (position, row) is always summed in the same order, whoever asks for it: ties are ties everywhere and
// results depend neither on the batch nor on the threads.
#pragma once

#include "dove/common.h"

namespace dove {

struct EosArgs {
  const void* hidden;      // [batch, positions, width]; the last dimension is dense
  const void* weight;      // [vocabulary, width]; the last dimension is dense
  const float* bias;       // [vocabulary], or null
  const int32_t* witness;  // scan: rows that are worth trying first; null if witness_count is 0
  int32_t* first;          // scan: [batch], written
  float* probability;      // probability: [batch, positions], written
  float* maximum;          // probability: [batch, positions], written: the largest logit
  float* sum;              // probability: [batch, positions], written: sum of exp(logit - maximum)
  void* workspace;
  int64_t workspace_bytes;
  int64_t batch;
  int64_t positions;
  int64_t width;
  int64_t vocabulary;
  int64_t witness_count;
  int64_t hidden_stride_image;  // in elements
  int64_t hidden_stride_position;
  int64_t weight_stride_row;
  int64_t eos_id;
  int64_t first_round;  // scan: positions compared with the whole vocabulary in the first round; 0 chooses
  DType dtype;          // of hidden and weight
  int threads;
};

namespace cpu {
// Bytes of workspace for these sizes and threads (pointers are not looked at).
int64_t eos_workspace(const EosArgs& args);

// first[b] = the first position at which EOS wins, or `positions`. EOS wins where its logit is above that of
// every other row, or equal to it with the lower index; a NaN among a position's logits makes EOS lose there.
Status eos_scan(const EosArgs& args);

// probability = exp(logit(EOS) - maximum) / sum.
Status eos_probability(const EosArgs& args);
}  // namespace cpu

// Gradients of eos_probability. With scale = grad probability / sum and e(v) = exp(logit(v) - maximum):
//   d probability / d logit(v) = -scale e(v) for v other than EOS, and others = scale sum_v e(v) for EOS itself.
struct EosGradArgs {
  const void* hidden;  // as in EosArgs
  const void* weight;
  const float* bias;         // or null
  const float* grad;         // [batch, positions] dense, of probability
  const float* probability;  // [batch, positions], as the forward pass wrote them
  const float* maximum;
  const float* sum;
  void* grad_hidden;  // [batch, positions, width] dense, of dtype
  void* grad_weight;  // [vocabulary, width] dense, of dtype
  float* grad_bias;   // [vocabulary], or null
  void* workspace;
  int64_t workspace_bytes;
  int64_t batch;
  int64_t positions;
  int64_t width;  // at most 512
  int64_t vocabulary;
  int64_t hidden_stride_image;  // in elements
  int64_t hidden_stride_position;
  int64_t weight_stride_row;
  int64_t eos_id;
  int64_t block_rows;  // 64 or 32 rows of a block in 16 bits; 0 chooses
  DType dtype;
};

namespace cuda {
int64_t eos_scan_workspace(const EosArgs& args);
int64_t eos_probability_workspace(const EosArgs& args);
int64_t eos_backward_workspace(const EosGradArgs& args);

// As on the CPU. The rounds are started without a look at what the earlier ones found, so nothing waits for the
// device. A witness outside the vocabulary is not looked at.
Status eos_scan(const EosArgs& args, void* stream);
Status eos_probability(const EosArgs& args, void* stream);
// Whether the current device has the shared memory that eos_probability_backward needs.
bool eos_backward_fits(DType dtype);
// Logits are made again, tile by tile; every sum has a fixed order.
Status eos_probability_backward(const EosGradArgs& args, void* stream);
}  // namespace cuda

}  // namespace dove
