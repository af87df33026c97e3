// Evaluation points in tiles, for the ops that sum a loss over all points for each of many items.
//
// Workers share the pairs (tile, item). A pair counts as many units of work as its tile has blocks. Every pair writes
// its own float64 sum, and the sums of the tiles are added in order, so the result does not depend on the number of
// threads.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <vector>

#include "cpu/simd/lanes.h"
#include "torch/parallel_tiles.h"

namespace lapal_ext {

constexpr int64_t kMaxTilePoints = 256;  // longer tiles are not faster, and leave fewer pairs for the threads

// The points of a call: tiles of full blocks, then one tile of the remaining points.
struct Tiling {
  int64_t n_eval;
  int64_t tile_points;
  int64_t n_full_points;
  int64_t n_full_tiles;
  int64_t n_tiles;

  int64_t start(int64_t tile) const {
    return tile < n_full_tiles ? tile * tile_points : n_full_points;
  }
  int64_t points(int64_t tile) const {
    return tile < n_full_tiles ? std::min(tile_points, n_full_points - start(tile)) : n_eval - n_full_points;
  }
  template <class T>
  int64_t blocks_before(int64_t tile) const {  // an incomplete block takes as long as a full one
    return tile < n_tiles ? start(tile) / kLanes<T> : (n_eval + kLanes<T> - 1) / kLanes<T>;
  }
};

// Tiles of about `bytes`, for points of `values_per_point` numbers. A tile is a multiple of two full blocks.
template <class T>
Tiling tiling_of(int64_t n_eval, int64_t values_per_point, int64_t bytes) {
  constexpr int kL = kLanes<T>;
  const int64_t fitting = bytes / (int64_t(sizeof(T)) * values_per_point) / (2 * kL) * (2 * kL);
  Tiling tiling{};
  tiling.n_eval = n_eval;
  tiling.tile_points = std::clamp<int64_t>(fitting, 2 * kL, kMaxTilePoints);
  tiling.n_full_points = n_eval / kL * kL;
  tiling.n_full_tiles = (tiling.n_full_points + tiling.tile_points - 1) / tiling.tile_points;
  tiling.n_tiles = tiling.n_full_tiles + (tiling.n_full_points < n_eval);
  return tiling;
}

// One block of kWidth lanes, with zeros after the first `valid`.
template <int kWidth, class To, class From>
void copy_block(const From* from, int64_t stride, int64_t valid, To* to) {
  for (int lane = 0; lane < kWidth; ++lane) {
    to[lane] = lane < valid ? To(from[lane * stride]) : To(0);
  }
}

// Points [start, start + points) of logits [C, E] as [block][C][lane].
template <class T>
void pack_logits(const torch::stable::Tensor& logits, int64_t start, int64_t points, T* packed) {
  constexpr int kL = kLanes<T>;
  const int64_t n_classes = logits.size(0), stride = logits.stride(1);
  for (int64_t k = 0; k < n_classes; ++k) {
    const T* from = logits.const_data_ptr<T>() + k * logits.stride(0) + start * stride;
    for (int64_t block = 0; block < points; block += kL) {
      copy_block<kL>(from + block * stride, stride, points - block, packed + block * n_classes + k * kL);
    }
  }
}

// Adds to `out` the sum over all points for each of n_items. `make_worker` returns the memory of one worker for
// parallel_tiles(). Its `sum_tile(start, points, begin, end, sums)` writes the sums of one tile's points for
// items [begin, end).
template <class T, class MakeWorker>
void sum_over_tiles(const Tiling& tiling, int64_t n_items, const char* op, MakeWorker&& make_worker, double* out) {
  constexpr int64_t kMaxPartialSums = int64_t(1) << 20;
  const int64_t round = std::max<int64_t>(1, kMaxPartialSums / n_items);  // tiles between two additions
  std::vector<double> sums(size_t(std::min(round, tiling.n_tiles) * n_items));
  for (int64_t first = 0; first < tiling.n_tiles; first += round) {
    const int64_t count = std::min(round, tiling.n_tiles - first);
    // The pair (tile, item) begins at unit (blocks before the tile) * n_items + item * (blocks of the tile).
    const int64_t first_block = tiling.template blocks_before<T>(first);
    const int64_t n_units = (tiling.template blocks_before<T>(first + count) - first_block) * n_items;
    const int64_t grain = tiling.tile_points / kLanes<T>;
    parallel_tiles(n_units, grain, op, make_worker, [&](int64_t begin, int64_t end, const auto& worker) {
      for (int64_t index = 0; index < count; ++index) {
        const int64_t tile = first + index;
        const int64_t before = tiling.template blocks_before<T>(tile);
        const int64_t blocks = tiling.template blocks_before<T>(tile + 1) - before;
        const int64_t base = (before - first_block) * n_items;
        // A worker computes the pairs that begin in its range.
        const auto items_before = [&](int64_t unit) {
          return std::clamp<int64_t>((unit - base + blocks - 1) / blocks, 0, n_items);
        };
        const int64_t from = items_before(begin), to = items_before(end);
        if (from < to) {
          worker.sum_tile(tiling.start(tile), tiling.points(tile), from, to, sums.data() + index * n_items);
        }
      }
    });
    for (int64_t index = 0; index < count; ++index) {
      for (int64_t i = 0; i < n_items; ++i) {
        out[i] += sums[size_t(index * n_items + i)];
      }
    }
  }
}

}  // namespace lapal_ext
