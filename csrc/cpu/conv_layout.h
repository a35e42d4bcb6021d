// How conv3x3 cuts images into tasks, and how its workspace is divided. Sizes do not depend on the instruction set.
//
// A task is `tiles` tiles: one square of 8 x 8, or squares of 4 x 4 that may come from several images. Which of these
// decides about speed alone: a tile's arithmetic is the same in any.
#pragma once

#include "dove/conv.h"

namespace dove::cpu {
namespace {  // internal linkage: every translation unit, compiled for its own instruction set, keeps its own copy

struct Conv3x3Layout {
  static constexpr int64_t kTile = 4;                          // outputs along each side
  static constexpr int64_t kPoints = 36;                       // products a tile
  static constexpr int64_t kMaxSide = 8;                       // tiles along a side of a square
  static constexpr int64_t kPatchSide = kMaxSide * kTile + 2;  // pixels that a square reads, along a side
  static constexpr int64_t kPad = 16;                          // keeps rows of 2^n values out of one cache set
  static constexpr int64_t kWidestPanel = 32;                  // outputs of a panel: two of the widest vectors
  static constexpr int64_t kWidestVector = 16;

  int64_t side;         // of a square, in tiles
  int64_t square_rows;  // squares of an image
  int64_t square_columns;
  int64_t squares;       // of all images
  int64_t task_squares;  // the last task may have fewer
  int64_t tiles;         // of a task
  int64_t tasks;
  int64_t input_stride;    // between tiles of one point
  int64_t product_stride;  // between points of a panel's products
  int64_t thread_bytes;
  int64_t scale_bytes;

  explicit Conv3x3Layout(const Conv3x3Args& a) {
    // Many tiles share each reading of the weights, but every thread is to have a task.
    const bool large = a.height > 4 * kTile && a.width > 4 * kTile;
    cut(a, large ? 8 : 4, 64);
    for (int64_t fewer = 32; fewer >= 16 && tasks < a.threads; fewer /= 2) cut(a, 4, fewer);
    input_stride = a.channels_in + kPad;
    product_stride = tiles * kWidestPanel + kPad;
    thread_bytes = 4 * (kPoints * (tiles * input_stride + product_stride) + kPatchSide * kPatchSide * kWidestVector);
    thread_bytes = (thread_bytes + 63) / 64 * 64;
    scale_bytes = (a.batch * 3 * a.channels_in * 4 + 63) / 64 * 64;
  }

  int64_t bytes(int threads) const { return scale_bytes + (threads > 1 ? threads : 1) * thread_bytes; }

 private:
  void cut(const Conv3x3Args& a, int64_t tiles_a_side, int64_t tiles_a_task) {
    const auto count = [](int64_t all, int64_t part) { return (all + part - 1) / part; };
    side = tiles_a_side;
    tiles = tiles_a_task;
    square_rows = count(a.height, side * kTile);
    square_columns = count(a.width, side * kTile);
    squares = a.batch * square_rows * square_columns;
    task_squares = tiles / (side * side);
    tasks = count(squares, task_squares);
  }
};

}  // namespace
}  // namespace dove::cpu
