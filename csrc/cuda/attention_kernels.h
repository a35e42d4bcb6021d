// The kernels of attention, as the launcher in attention.cu calls them with checked arguments.
#pragma once

#include "dove/attention.h"

namespace dove::cuda {

Status attention_forward_tensor_cores(const AttentionArgs& args, void* stream);
// `delta` is workspace in the layout of lse.
Status attention_backward_tensor_cores(const AttentionArgs& args, float* delta, void* stream);
Status attention_forward_float(const AttentionArgs& args, void* stream);
Status attention_backward_float(const AttentionArgs& args, float* delta, void* stream);

}  // namespace dove::cuda
