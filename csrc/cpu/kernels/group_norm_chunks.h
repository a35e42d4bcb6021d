// The two passes that group_norm and its backward make: how images are cut into chunks of whole pixels, and in
// what order chunks and images are worked on. The size of a chunk follows from the channel count alone and one
// task is one chunk, so a result depends neither on the threads nor on the batch.
#pragma once

#include "../parallel.h"
#include "vec.h"

namespace dove::cpu::DOVE_ISA {
namespace {

// Bytes of input after which the images met so far are finished before the next is begun.
constexpr int64_t kSetBytes = int64_t{4} << 20;

// Some 40 us of work: about what waking a thread that sleeps costs.
constexpr int64_t kThreadValues = int64_t{1} << 17;

struct Chunk {
  int64_t image;
  int64_t index;
  int64_t first_pixel;
  int64_t pixels;
};

// `Args` and `Layout` are those of the forward or of the backward.
template <class Args, class Layout>
Chunk chunk_of(const Args& a, const Layout& w, int64_t image, int64_t index) {
  const int64_t first = index * w.chunk_pixels;
  const int64_t left = a.pixels - first;
  return {image, index, first, left < w.chunk_pixels ? left : w.chunk_pixels};
}

template <class T>
const T* pixel_row(const void* base, int64_t image, int64_t stride_image, int64_t pixel, int64_t stride_pixel) {
  return static_cast<const T*>(base) + image * stride_image + pixel * stride_pixel;
}

// The last, incomplete vector of a row: `count` values, then zeros.
template <class T>
Vec load_some(const T* from, int64_t count) {
  T values[kLanes] = {};
  std::memcpy(values, from, count * sizeof(T));
  return load(values);
}

template <class T>
void store_some(T* to, Vec v, int64_t count) {
  T values[kLanes];
  store(values, v);
  std::memcpy(to, values, count * sizeof(T));
}

// A thread is woken for a share of at least kThreadValues values.
template <class Args>
int threads_for(const Args& a) {
  const int64_t shares = a.batch * a.pixels * a.channels / kThreadValues;
  return shares < a.threads ? static_cast<int>(shares > 1 ? shares : 1) : a.threads;
}

// Calls first(chunk) for all chunks of an image, then between(image), then last(chunk). Images run through all
// three in sets of at most kSetBytes or one image, of which the caches still hold something when `last` comes;
// `last` takes the last chunks first, since those are what is left of a large image.
template <class Args, class Layout, class First, class Between, class Last>
void two_passes(const Args& a, const Layout& w, int64_t image_bytes, const First& first, const Between& between,
                const Last& last) {
  const int threads = threads_for(a);
  const int64_t set_size = image_bytes < kSetBytes ? kSetBytes / image_bytes : 1;
  for (int64_t begin = 0; begin < a.batch; begin += set_size) {
    const int64_t images = a.batch - begin < set_size ? a.batch - begin : set_size;
    const int64_t tasks = images * w.chunks;
    const auto chunk = [&](int64_t task) { return chunk_of(a, w, begin + task / w.chunks, task % w.chunks); };
    parallel_for(tasks, threads, [&](int64_t i) { first(chunk(i)); });
    parallel_for(images, threads, [&](int64_t i) { between(begin + i); });
    parallel_for(tasks, threads, [&](int64_t i) { last(chunk(tasks - 1 - i)); });
  }
}

}  // namespace
}  // namespace dove::cpu::DOVE_ISA
