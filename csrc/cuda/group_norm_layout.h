// How group_norm and its backward cut an image into chunks, in what order blocks work on them, who owns which
// channels, and how the workspace is divided.
#pragma once

#include "dove/group_norm.h"
#include "launch.h"

namespace dove::cuda {

struct GroupNormLayout {
  static constexpr int kThreads = 256;
  // Values of a chunk: at least so many that a thread has several packets in flight, at most so many chunks an
  // image that merging them stays cheap.
  static constexpr int64_t kChunkValues = 8192;
  static constexpr int64_t kMaxChunks = 256;
  static constexpr int64_t kResident = 3;                   // blocks a multiprocessor that run at a time, about
  static constexpr int64_t kHeldValues = int64_t{8} << 20;  // see run_ahead
  static constexpr int64_t kMaxChannels = 4096;

  int64_t chunk_pixels;
  int64_t chunks;         // per image
  int64_t lead = 0;       // chunks by which the first pass runs ahead of the second; see run_ahead
  int64_t counter_bytes;  // of the following counters, which begin as 0
  int* tickets;           // tasks that have been taken
  int* arrived;           // [batch], chunks that the first pass is done with, and 1 for what follows from all of them
  int* arrived_last;      // [batch], chunks that the second pass is done with
  double* chunk_mean;     // forward: [batch, groups, chunks]
  double* chunk_squares;  // forward: [batch, groups, chunks], squared deviations from the chunk's own mean
  float* center;          // forward: [batch, channels], the group's mean, less what is still to be added to x
  float* scale;           // forward: [batch, channels], weight * rstd
  float* shift;           // forward: [batch, channels], bias, less what `center` lost by rounding
  int64_t row;            // backward: channels, rounded up to packets of 4
  float* chunk_sums;      // backward: [batch, chunks, 2, row], sums of dy and of dy z
  float* chunk_x_sums;    // backward: [batch, chunks, row], sums of grad_x
  double* image_sums;     // backward: [batch, 2, row], as chunk_sums, of an image
  double* image_x_sums;   // backward: [batch, row], as chunk_x_sums, of an image
  float* group_means;     // backward: [batch, 2, groups], means of dz and of dz z
  int64_t bytes;

  // `Args`: those of either pass.
  template <class Args>
  GroupNormLayout(const Args& a, void* base) {
    const int64_t batch = a.batch, pixels = a.pixels, channels = a.channels, groups = a.groups;
    int64_t values = pixels * channels / kMaxChunks;
    if (values < kChunkValues) values = kChunkValues;
    chunk_pixels = (values + channels - 1) / channels;
    chunks = (pixels + chunk_pixels - 1) / chunk_pixels;
    bytes = 0;
    const auto take = [&](int64_t count, int64_t size) {
      void* here = static_cast<char*>(base) + bytes;
      bytes += (count * size + 63) / 64 * 64;
      return here;
    };
    tickets = static_cast<int*>(take(1 + 2 * batch, sizeof(int)));
    arrived = tickets + 1;
    arrived_last = arrived + batch;
    counter_bytes = bytes;
    const int64_t parts = batch * chunks * groups;
    chunk_mean = static_cast<double*>(take(parts, sizeof(double)));
    chunk_squares = static_cast<double*>(take(parts, sizeof(double)));
    center = static_cast<float*>(take(batch * channels, sizeof(float)));
    scale = static_cast<float*>(take(batch * channels, sizeof(float)));
    shift = static_cast<float*>(take(batch * channels, sizeof(float)));
    const int64_t forward_bytes = bytes;
    bytes = counter_bytes;  // forward and backward never share a call
    row = ceil_div(channels, 4) * 4;
    chunk_sums = static_cast<float*>(take(batch * chunks * 2 * row, sizeof(float)));
    chunk_x_sums = static_cast<float*>(take(batch * chunks * row, sizeof(float)));
    image_sums = static_cast<double*>(take(batch * 2 * row, sizeof(double)));
    image_x_sums = static_cast<double*>(take(batch * row, sizeof(double)));
    group_means = static_cast<float*>(take(batch * 2 * groups, sizeof(float)));
    if (bytes < forward_bytes) bytes = forward_bytes;
  }

  // The second pass of an image needs the first of all its chunks. So that few blocks wait, the first runs ahead by as
  // many more as run at a time, unless the L2 cache could not hold so much until the second comes.
  void run_ahead(int64_t batch, int64_t channels) {
    const int64_t held = kHeldValues / (chunk_pixels * channels);
    lead = chunks + processors() * kResident;
    if (lead > held) lead = held > chunks ? held : chunks;
    if (lead > batch * chunks) lead = batch * chunks;
  }
};

// What a block does: one pass over one chunk. A grid has a block for each pass of each chunk, and blocks take tasks in
// the order in which they start, so nobody needs to know how many run at a time. With `lead` 3, for chunks 0, 1, ..:
//
//     first pass    0 1 2   3   4   5 ..
//     second pass         0   1   2   ..
//
// A block of the second pass waits for the first pass of its image. All of those tasks were taken before its own, by
// blocks that run and never wait themselves: it cannot wait for ever.
struct GroupNormTask {
  bool second;
  int64_t image;
  int64_t chunk;

  static int64_t count(const GroupNormLayout& w, int64_t batch) { return 2 * batch * w.chunks; }

  __device__ GroupNormTask(const GroupNormLayout& w, int64_t batch) {
    DOVE_SHARED(int, ticket, );
    if (threadIdx.x == 0) ticket = atomicAdd(w.tickets, 1);
    __syncthreads();
    const int64_t pairs = batch * w.chunks - w.lead, behind = ticket - w.lead;
    second = behind >= 2 * pairs || (behind >= 0 && behind % 2 == 0);
    int64_t number = ticket;
    if (behind >= 2 * pairs) {
      number = behind - pairs;
    } else if (behind >= 0) {
      number = behind / 2 + (second ? 0 : w.lead);
    }
    image = number / w.chunks;
    chunk = number % w.chunks;
  }
};

// Whether this block is the last of `count` to come here. If so, it sees what the others have written.
__device__ inline bool last_to_arrive(int* counter, int64_t count) {
  DOVE_SHARED(int, before, );
  __syncthreads();
  if (threadIdx.x == 0) before = arrive(counter);
  __syncthreads();
  return before == count - 1;
}

// Waits for all chunks of the first pass, and for what the last of them has made of them.
__device__ inline void wait_for_first_pass(const GroupNormLayout& w, int64_t image) {
  if (threadIdx.x == 0) wait_for(w.arrived + image, static_cast<int>(w.chunks) + 1);
  __syncthreads();
}

// Tells the second pass that all is there that it needs.
__device__ inline void end_first_pass(const GroupNormLayout& w, int64_t image) {
  __syncthreads();
  if (threadIdx.x == 0) arrive(w.arrived + image);
}

// Which packets of channels and which pixels of a chunk a thread owns: packet first + i kThreads, every lanes-th
// pixel from `lane` on.
struct PixelOwner {
  int packets;  // of a pixel
  int lanes;    // pixels side by side
  int lane;
  int first;
  bool active;

  __host__ __device__ static int lanes_of(int64_t packets) {
    return packets < GroupNormLayout::kThreads ? GroupNormLayout::kThreads / static_cast<int>(packets) : 1;
  }

  __device__ PixelOwner(int64_t packets_of_pixel, int thread)
      : packets(static_cast<int>(packets_of_pixel)), lanes(lanes_of(packets_of_pixel)) {
    lane = lanes > 1 ? thread / packets : 0;
    first = lanes > 1 ? thread % packets : thread;
    active = lane < lanes;
  }
};

template <class Args>
Status check_group_norm(const Args& a) {
  if (a.batch < 0 || a.batch > 65535 || a.pixels < 1 || a.channels < 1 || a.groups < 1 || a.channels % a.groups != 0 ||
      a.channels > GroupNormLayout::kMaxChannels) {
    return Status::kUnsupportedShape;
  }
  if (a.workspace_bytes < GroupNormLayout(a, nullptr).bytes) return Status::kWorkspaceTooSmall;
  const bool known = a.dtype == DType::kFloat32 || a.dtype == DType::kBFloat16 || a.dtype == DType::kFloat16;
  return known && (a.parameters == DType::kFloat32 || a.parameters == a.dtype) ? Status::kOk
                                                                               : Status::kUnsupportedDType;
}

}  // namespace dove::cuda
