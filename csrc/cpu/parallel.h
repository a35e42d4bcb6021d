// A small persistent thread pool. OpenMP is not used: torch brings its own copy of libgomp, and a second
// one in the process would spin against it.
#pragma once

#include <cstdint>

namespace dove::cpu {

// Calls task(context, i) for every i in [0, count), each exactly once, on at most `threads` threads
// including the caller, and returns when all are done. Tasks are handed out one at a time, so which thread
// runs a task is not fixed: a task must own its outputs, and then the result does not depend on `threads`.
// Calls from inside a task, and calls while another thread of the program holds the pool, run on the
// caller alone. Safe after fork: the child builds a pool of its own.
void parallel_for(int64_t count, int threads, void (*task)(void*, int64_t), void* context);

template <class Task>
void parallel_for(int64_t count, int threads, const Task& task) {
  parallel_for(
      count, threads, [](void* context, int64_t i) { (*static_cast<const Task*>(context))(i); },
      const_cast<void*>(static_cast<const void*>(&task)));
}

// Index of the calling thread within the current parallel_for, in [0, threads): for per-thread scratch.
int thread_index();

}  // namespace dove::cpu
