// One pick of sequential selection: one pass over the pool.
//
//   c = Phi u + offset;  logits += c g^T;  v -= beta c^2;  utility of softmax(logits / sqrt(1 + kappa v))
//
// The pick is the free row with the largest utility.
//
// Shapes: pool [N, D] in any storage dtype, u [D], g [C], logits [N, C], v [N], taken [N], scale [N].
//
// Layout: pool rows are contiguous, all else has any strides.
//
// Three launches: c (pool_rows.cuh); then the logits, variance and utility of each row, and the best row of each block;
// then the best of all blocks. Workspace: c [N] and a candidate per block. For few classes, a thread takes a row of a
// tile that the block copies to shared memory in the order of memory, and updates on the way. For many classes, a warp
// takes a row and keeps it in registers. Rows that are too long for that are updated in memory and read again from
// cache. Blocks share the tiles in grid-stride loops. The order of candidates is total, so the pick does not depend on
// the grid.
//
// Limit: memory, one read of the pool, a read and a write of N C logits. An exponential per logit is a quarter of the
// time of the latter on an H100.
#pragma once

#include "cuda/shared/pool_rows.cuh"
#include "cuda/shared/row_tile.cuh"
#include "cuda/shared/utility_row.cuh"

namespace lapal_ext {

template <class T>
struct SelectionRows {
  LogitRows<T> logits;
  T* moved;          // the same logits, to be changed
  const T* columns;  // c [N]
  Effect<T> effect;
  T* variance;  // null for the plugin link
  int64_t variance_stride;
  const T* scale;  // null unless the utility needs it
  int64_t scale_stride;
  T kappa;
  TakenRows taken;
  Candidate<T>* candidates;  // [blocks]
};

// load_tile() that also adds c g^T, in the tile and in memory.
template <class T>
__device__ __forceinline__ void move_tile(const SelectionRows<T>& rows, int64_t start, T* tile) {
  const LogitRows<T>& logits = rows.logits;
  const int n_classes = int(logits.n_classes), length = tile_row_length(n_classes);
  const int n_rows = rows_of_tile(start, logits.n_rows);
  T* at = rows.moved + start * logits.row_stride;
  const auto move = [&](int row, int k) {
    T* logit = at + row * logits.row_stride + k * logits.class_stride;
    const T moved = *logit + rows.columns[start + row] * rows.effect.g[k];
    *logit = moved;
    tile[row * length + k] = moved;
  };
  if (logits.row_stride == 1) {
    for (int k = 0; k < n_classes; ++k) {
      if (int(threadIdx.x) < n_rows) {
        move(int(threadIdx.x), k);
      }
    }
    return;
  }
  for (TileWalk walk(int(threadIdx.x), n_classes); walk.major < n_rows; walk.advance(n_classes)) {
    move(walk.major, walk.minor);
  }
}

// Updates the variance of row n and returns it. One thread calls it for each row.
template <class T>
__device__ __forceinline__ T move_variance(const SelectionRows<T>& rows, int64_t n, bool moves) {
  if (rows.variance == nullptr) {
    return T(0);
  }
  T* at = rows.variance + n * rows.variance_stride;
  T variance = *at;
  if (moves) {
    const T column = rows.columns[n];
    variance -= *rows.effect.beta * (column * column);
    *at = variance;
  }
  return variance;
}

template <class T>
__device__ __forceinline__ T link_of(const SelectionRows<T>& rows, T variance) {
  return rows.variance == nullptr ? T(1) : mean_field(variance, rows.kappa);
}

template <class T>
__device__ __forceinline__ T scale_of(const SelectionRows<T>& rows, int64_t n) {
  return rows.scale == nullptr ? T(0) : rows.scale[n * rows.scale_stride];
}

// A row per thread.
template <Utility kind, class T>
__global__ void __launch_bounds__(kTileRows, 1) selection_tile_kernel(SelectionRows<T> rows) {
  LAPAL_SHARED(int, scratch, kTileRows / kWarpSize);
  LAPAL_SHARED(Candidate<T>, best_scratch, kTileRows / kWarpSize);
  LAPAL_DYN_SHARED(T, tile);
  const bool any_move = moves<kTileRows>(rows.effect, scratch);
  const int n_classes = int(rows.logits.n_classes), length = tile_row_length(n_classes);
  Candidate<T> best = no_candidate<T>();
  for (int64_t start = int64_t(blockIdx.x) * kTileRows; start < rows.logits.n_rows;
       start += int64_t(gridDim.x) * kTileRows) {
    if (any_move) {
      move_tile(rows, start, tile);
    } else {
      load_tile(rows.logits, start, tile);
    }
    __syncthreads();
    const int64_t n = start + threadIdx.x;
    if (n < rows.logits.n_rows) {
      T utility = move_variance(rows, n, any_move);
      if constexpr (needs_of(kind).logits) {
        const T* row = tile + int(threadIdx.x) * length;
        utility = utility_of_row<kind>(row, n_classes, link_of(rows, utility), scale_of(rows, n));
      }
      best = rows.taken.better_of(utility, n, best);
    }
    __syncthreads();  // the next tile overwrites this one
  }
  store_candidate<kTileRows>(best, best_scratch, rows.candidates);
}

// move_variance() by one lane, with the result in all lanes.
template <class T>
__device__ __forceinline__ T move_variance_of_warp(const SelectionRows<T>& rows, int64_t n, bool moves) {
  const T variance = threadIdx.x % kWarpSize == 0 ? move_variance(rows, n, moves) : T(0);
  return __shfl_sync(kFullWarp, variance, 0);
}

// A row per warp, with kPerLane classes of each lane in registers.
template <Utility kind, int kPerLane, class T>
__global__ void __launch_bounds__(kRowWarps* kWarpSize, 1) selection_warp_kernel(SelectionRows<T> rows) {
  LAPAL_SHARED(int, scratch, kRowWarps);
  LAPAL_SHARED(Candidate<T>, best_scratch, kRowWarps);
  const bool any_move = moves<kRowWarps * kWarpSize>(rows.effect, scratch);
  const int lane = int(threadIdx.x) % kWarpSize;
  const LogitRows<T>& logits = rows.logits;
  Candidate<T> best = no_candidate<T>();
  for (int64_t n = first_row_of_warp(); n < logits.n_rows; n += int64_t(gridDim.x) * kRowWarps) {
    T values[kPerLane];
    load_classes(logits, n, values);
    if (any_move) {
      const T column = rows.columns[n];
      T* row = rows.moved + n * logits.row_stride;
#pragma unroll
      for (int i = 0; i < kPerLane; ++i) {
        const int64_t k = i * kWarpSize + lane;
        if (k < logits.n_classes) {
          values[i] += column * rows.effect.g[k];
          row[k * logits.class_stride] = values[i];
        }
      }
    }
    const T variance = move_variance_of_warp(rows, n, any_move);
    const T utility = utility_of_lanes<kind>(values, logits.n_classes, link_of(rows, variance), scale_of(rows, n));
    best = rows.taken.better_of(utility, n, best);
  }
  store_candidate<kRowWarps * kWarpSize>(best, best_scratch, rows.candidates);
}

// A row per warp, for rows of any length.
template <Utility kind, class T>
__global__ void __launch_bounds__(kRowWarps* kWarpSize, 1) selection_long_kernel(SelectionRows<T> rows) {
  LAPAL_SHARED(int, scratch, kRowWarps);
  LAPAL_SHARED(Candidate<T>, best_scratch, kRowWarps);
  const bool any_move = moves<kRowWarps * kWarpSize>(rows.effect, scratch);
  const LogitRows<T>& logits = rows.logits;
  Candidate<T> best = no_candidate<T>();
  for (int64_t n = first_row_of_warp(); n < logits.n_rows; n += int64_t(gridDim.x) * kRowWarps) {
    T* row = rows.moved + n * logits.row_stride;
    if (any_move) {
      const T column = rows.columns[n];
      // Each lane updates the classes that it reads later.
      for (int64_t k = threadIdx.x % kWarpSize; k < logits.n_classes; k += kWarpSize) {
        row[k * logits.class_stride] += column * rows.effect.g[k];
      }
    }
    T utility = move_variance_of_warp(rows, n, any_move);
    if constexpr (needs_of(kind).logits) {
      utility = utility_of_long_row<kind>(row, logits.class_stride, logits.n_classes, link_of(rows, utility),
                                          scale_of(rows, n));
    }
    best = rows.taken.better_of(utility, n, best);
  }
  store_candidate<kRowWarps * kWarpSize>(best, best_scratch, rows.candidates);
}

}  // namespace lapal_ext
