// How a call of attention is cut up: agreed between the dispatcher and the kernel of the active instruction set.
#pragma once

#include "dove/attention.h"

namespace dove::cpu {

struct AttentionPlan {
  int64_t max_keys;      // of the longest sequence
  int64_t max_queries;   // likewise
  int64_t parts;         // forward: tasks a (sequence, head) is split into
  int64_t thread_bytes;  // workspace of one thread
};

struct AttentionPlanArgs {
  const AttentionArgs* args;
  AttentionPlan* plan;
};

}  // namespace dove::cpu
