// One pass over the rows of a pool: tiles of rows, and the best row of all.
//
// One thread computes a tile, and the best rows of the tiles are compared in the order of the tiles. The order of the
// sums over features depends on D only. So results do not depend on the number of threads, and equal rows tie exactly.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cstdint>
#include <limits>
#include <vector>

#include "cpu/pool/row_sums.h"
#include "cpu/simd/lanes.h"
#include "cpu/simd/scratch.h"
#include "torch/dispatch.h"
#include "torch/parallel_tiles.h"
#include "torch/rows.h"

namespace lapal_ext {

constexpr int64_t kMaxTileRows =
    512;  // long enough for contiguous runs in every class, short enough to balance threads

template <class S>
PoolRows<Bits<S>> rows_of(const torch::stable::Tensor& pool) {
  return {reinterpret_cast<const Bits<S>*>(pool.const_data_ptr<S>()), pool.stride(0), pool.size(1)};
}

// The first `valid` values of a block, and zeros after them: other values there could be subnormal, which is slow.
template <class T>
LAPAL_HD void load_lanes(const T* from, int64_t stride, int valid, T* to) {
  constexpr int kL = kLanes<T>;
  if (valid == kL && stride == 1) {
#pragma omp simd
    for (int lane = 0; lane < kL; ++lane) {
      to[lane] = from[lane];
    }
    return;
  }
  for (int lane = 0; lane < kL; ++lane) {
    to[lane] = lane < valid ? from[lane * stride] : T(0);
  }
}

template <class T>
LAPAL_HD void store_lanes(const T* from, int64_t stride, int valid, T* to) {
  constexpr int kL = kLanes<T>;
  if (valid == kL && stride == 1) {
#pragma omp simd
    for (int lane = 0; lane < kL; ++lane) {
      to[lane] = from[lane];
    }
    return;
  }
  for (int lane = 0; lane < valid; ++lane) {
    to[lane * stride] = from[lane];
  }
}

// The best free row so far: the largest utility, and of equal ones the lowest index. A NaN is larger than any number.
struct Best {
  int64_t index = -1;  // no free row
  double utility = -std::numeric_limits<double>::infinity();

  LAPAL_HD void update(int64_t later, double candidate) {
    const bool wins = candidate > utility || (candidate != candidate && utility == utility);
    if (index < 0 || wins) {
      index = later;
      utility = candidate;
    }
  }
};

// The mask of the rows that were picked before.
struct TakenRows {
  bool* rows;
  int64_t stride;

  template <class T>
  LAPAL_HD void update_best(const T* utilities, int64_t first, int valid, Best& best) const {
    if (valid == kLanes<T> && best.index >= 0) {
      int wins = 0;  // most blocks have no better row, free or taken
#pragma omp simd reduction(| : wins)
      for (int lane = 0; lane < kLanes<T>; ++lane) {
        wins |= !(utilities[lane] <= T(best.utility));
      }
      if (!wins) {
        return;
      }
    }
    for (int lane = 0; lane < valid; ++lane) {
      if (!rows[(first + lane) * stride]) {
        best.update(first + lane, double(utilities[lane]));
      }
    }
  }
};

// Calls tile(number, start, rows, scratch) for every tile of rows. Every thread has `scratch_size` numbers of its own.
template <class T, class Tile>
void for_each_tile(int64_t n_rows, int64_t tile_rows, int64_t scratch_size, const char* op, Tile&& tile) {
  const int64_t n_tiles = (n_rows + tile_rows - 1) / tile_rows;
  parallel_tiles(
      n_tiles, 1, op, [&] { return Scratch<T>(scratch_size); },
      [&](int64_t begin, int64_t end, const Scratch<T>& scratch) {
        for (int64_t number = begin; number < end; ++number) {
          const int64_t start = number * tile_rows;
          tile(number, start, std::min(tile_rows, n_rows - start), scratch.data());
        }
      });
}

// Marks the best row of all tiles as taken and returns it, or {-1, -inf} if no row is free. tile(start, rows, scratch)
// returns the best row of one tile.
template <class T, class Tile>
Best take_best(int64_t n_rows, int64_t tile_rows, int64_t scratch_size, const TakenRows& taken, const char* op,
               Tile&& tile) {
  std::vector<Best> found(size_t((n_rows + tile_rows - 1) / tile_rows));
  for_each_tile<T>(n_rows, tile_rows, scratch_size, op, [&](int64_t number, int64_t start, int64_t rows, T* scratch) {
    found[size_t(number)] = tile(start, rows, scratch);
  });
  Best best;
  for (const Best& candidate : found) {
    if (candidate.index >= 0) {
      best.update(candidate.index, candidate.utility);
    }
  }
  if (best.index >= 0) {
    taken.rows[best.index * taken.stride] = true;
  }
  return best;
}

}  // namespace lapal_ext
