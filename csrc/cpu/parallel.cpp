#include "parallel.h"

#include <pthread.h>
#if defined(__linux__)
#include <sched.h>
#endif

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <thread>

#if defined(__x86_64__)
#include <immintrin.h>
#define DOVE_PAUSE() _mm_pause()
#else
#define DOVE_PAUSE() std::this_thread::yield()
#endif

namespace dove::cpu {
namespace {

thread_local int t_index = 0;
thread_local bool t_inside = false;

// How long an idle worker and a waiting caller spin before they sleep: about 20 us, the gap between two
// kernels of one forward pass, far below a scheduler slice.
constexpr int kSpins = 400;

// Not `wait`: gcc 12 makes it a symbol that the libstdc++ of gcc 11 lacks, and with it the Linuxes whose glibc the
// wheels ask for.
template <class Ready>
void sleep_until(std::condition_variable& changed, std::unique_lock<std::mutex>& lock, Ready ready) {
  while (!changed.wait_for(lock, std::chrono::hours(1), ready)) {
  }
}

struct Job {
  void (*task)(void*, int64_t);
  void* context;
  int64_t count;
  int workers;  // workers with index < this take part
};

class Pool {
 public:
  // Never destroyed: workers may outlive static destruction at exit.
  static Pool& get() {
    std::call_once(once(), [] {
      instance() = new Pool;
      pthread_atfork(nullptr, nullptr, [] { instance() = new Pool; });
    });
    return *instance();
  }

  bool try_enter() { return busy_.try_lock(); }
  void leave() { busy_.unlock(); }

  void run(const Job& job) {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      while (spawned_ < job.workers) {
        const int index = ++spawned_;
        std::thread thread([this, index] { work(index); });
        handles_[index % kMaxHandles] = thread.native_handle();
        thread.detach();
        avoided_cpu_ = -1;
      }
      keep_off_the_callers_cpu();
      job_ = job;
      next_.store(0, std::memory_order_relaxed);
      pending_.store(job.workers, std::memory_order_relaxed);
      generation_.fetch_add(1, std::memory_order_release);
    }
    wake_.notify_all();
    drain(job);
    for (int spin = 0; pending_.load(std::memory_order_acquire) != 0; ++spin) {
      if (spin < kSpins) {
        DOVE_PAUSE();
        continue;
      }
      std::unique_lock<std::mutex> lock(mutex_);
      sleep_until(done_, lock, [this] { return pending_.load(std::memory_order_acquire) == 0; });
    }
  }

 private:
  static std::once_flag& once() {
    static std::once_flag flag;
    return flag;
  }
  static Pool*& instance() {
    static Pool* pool = nullptr;
    return pool;
  }

  // On a machine where every CPU is busy the kernel likes to wake a worker on the CPU of the thread that wakes it,
  // where it then waits for the caller's share to end. Workers may run anywhere the caller may, but not there.
  // Costs two system calls per worker, and only when the caller has moved.
  void keep_off_the_callers_cpu() {
#if defined(__linux__)
    const int cpu = sched_getcpu();
    if (cpu == avoided_cpu_ || cpu < 0) return;
    avoided_cpu_ = cpu;
    cpu_set_t allowed;
    if (sched_getaffinity(0, sizeof allowed, &allowed) != 0 || CPU_COUNT(&allowed) < 2) return;
    CPU_CLR(cpu, &allowed);
    for (int i = 1; i <= spawned_ && i < kMaxHandles; ++i)
      pthread_setaffinity_np(handles_[i], sizeof allowed, &allowed);
#endif
  }

  void drain(const Job& job) {
    for (;;) {
      const int64_t i = next_.fetch_add(1, std::memory_order_relaxed);
      if (i >= job.count) return;
      job.task(job.context, i);
    }
  }

  void work(int index) {
    t_index = index;
    t_inside = true;
    uint64_t seen = 0;
    {
      // A worker starts while its first job is being published: whatever generation it belongs to is
      // current as soon as the lock is free, and it has not been seen.
      std::lock_guard<std::mutex> lock(mutex_);
      seen = generation_.load(std::memory_order_relaxed) - 1;
    }
    for (;;) {
      for (int spin = 0; spin < kSpins && generation_.load(std::memory_order_acquire) == seen; ++spin) {
        DOVE_PAUSE();
      }
      Job job;
      {
        std::unique_lock<std::mutex> lock(mutex_);
        sleep_until(wake_, lock, [&] { return generation_.load(std::memory_order_relaxed) != seen; });
        seen = generation_.load(std::memory_order_relaxed);
        job = job_;
      }
      if (index > job.workers) continue;
      drain(job);
      if (pending_.fetch_sub(1, std::memory_order_acq_rel) == 1) {
        std::lock_guard<std::mutex> lock(mutex_);
        done_.notify_one();
      }
    }
  }

  std::mutex busy_;   // held by the one caller that uses the pool
  std::mutex mutex_;  // guards job_ and generation_
  std::condition_variable wake_, done_;
  Job job_{};
  int spawned_ = 0;
  static constexpr int kMaxHandles = 1024;
  pthread_t handles_[kMaxHandles];  // of workers 1..spawned_; workers never end
  int avoided_cpu_ = -1;
  std::atomic<uint64_t> generation_{0};
  std::atomic<int64_t> next_{0};
  std::atomic<int> pending_{0};
};

}  // namespace

int thread_index() { return t_index; }

void parallel_for(int64_t count, int threads, void (*task)(void*, int64_t), void* context) {
  if (count <= 0) return;
  const int workers = static_cast<int>(threads < count ? threads : count) - 1;
  Pool* pool = workers > 0 && !t_inside ? &Pool::get() : nullptr;
  if (pool == nullptr || !pool->try_enter()) {
    // On a worker thread t_index stays the worker's: nested scratch still has one owner.
    for (int64_t i = 0; i < count; ++i) task(context, i);
    return;
  }
  t_inside = true;
  pool->run({task, context, count, workers});
  t_inside = false;
  pool->leave();
}

}  // namespace dove::cpu
