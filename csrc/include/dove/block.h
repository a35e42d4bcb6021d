// The element-wise work of a parallel-residual block, x + attention(norm_a(x)) + mlp(norm_b(x)): both LayerNorms of
// one x, the bias and exact GELU inside the MLP, and the sum that ends the block with the biases of both branches.
// Matrix products stay with the framework. CUDA only.
//
// Activations are dense rows [rows, width]; parameters are [width] in their own dtype. Arithmetic is float32, results
// are rounded once.
#pragma once

#include "dove/common.h"

namespace dove {

// normed[i] = (x - mean) * rstd * weight[i] + bias[i] for i = 0 and 1, with mean and variance of the row.
struct PairNormArgs {
  const void* x;
  const void* weight[2];
  const void* bias[2];
  void* normed[2];
  float* mean;  // [rows], written
  float* rstd;  // [rows], written: 1 / sqrt(variance + eps)
  int64_t rows;
  int64_t width;
  double eps;
  DType dtype;       // of x and normed
  DType parameters;  // float32 or dtype
};

// With z = (x - mean) * rstd and dz = sum_i grad[i] weight[i]: grad_x = rstd (dz - mean(dz) - z mean(dz z)),
// grad_weight[i] = sum over rows of grad[i] z, grad_bias[i] = sum over rows of grad[i].
struct PairNormGradArgs {
  const void* x;
  const void* grad[2];  // of normed
  const void* weight[2];
  const float* mean;
  const float* rstd;
  void* grad_x;
  float* grad_parameters;  // [4, width]: weight 0, bias 0, weight 1, bias 1
  void* workspace;
  int64_t workspace_bytes;
  int64_t rows;
  int64_t width;
  DType dtype;
  DType parameters;
};

// out = gelu(x + bias), gelu(v) = v Phi(v) with the normal distribution's Phi.
struct BiasGeluArgs {
  const void* x;
  const void* bias;
  const void* grad;  // backward: of out
  void* out;         // backward: the gradient of x
  int64_t rows;
  int64_t width;
  DType dtype;
  DType parameters;
};

// out = x + (a + bias_a) + (b + bias_b).
struct AddBranchesArgs {
  const void* x;
  const void* a;
  const void* b;
  const void* bias_a;
  const void* bias_b;
  void* out;
  int64_t rows;
  int64_t width;
  DType dtype;
  DType parameters;
};

namespace cuda {
Status pair_norm(const PairNormArgs& args, void* stream);
// Bytes of workspace for these sizes (pointers are not looked at).
int64_t pair_norm_backward_workspace(const PairNormGradArgs& args);
Status pair_norm_backward(const PairNormGradArgs& args, void* stream);
Status bias_gelu(const BiasGeluArgs& args, void* stream);
Status bias_gelu_backward(const BiasGeluArgs& args, void* stream);
Status add_branches(const AddBranchesArgs& args, void* stream);
}  // namespace cuda

}  // namespace dove
