// Rows of a matrix [N, C] with any strides: a tile of them in shared memory with one row per thread, or one row in the
// registers of a warp.
#pragma once

#include "cuda/shared/portability.h"
#include "shared/logit_rows.h"

namespace lapal_ext {

constexpr int kTileRows = 128;   // of a tile: one per thread
constexpr int kRowWarps = 4;     // of a block, if a warp takes a row
constexpr int kFewClasses = 32;  // up to here a thread takes a row; a warp would have lanes without a class

// Odd, so that a class of 32 rows is in 32 banks.
__host__ __device__ constexpr int tile_row_length(int n_classes) {
  return n_classes | 1;
}

// Steps through the elements of a tile, kTileRows at a time and without a division for each. `major` counts lines of
// `length` elements, `minor` the elements in a line.
struct TileWalk {
  int major, minor;

  __device__ __forceinline__ TileWalk(int thread, int length) : major(thread / length), minor(thread % length) {}

  __device__ __forceinline__ void advance(int length) {
    major += kTileRows / length;
    minor += kTileRows % length;
    if (minor >= length) {
      minor -= length;
      ++major;
    }
  }
};

__device__ __forceinline__ int rows_of_tile(int64_t start, int64_t n_rows) {
  return n_rows - start < kTileRows ? int(n_rows - start) : kTileRows;
}

// Copies rows [start, start + kTileRows) to tile [row][class]. Neighbouring threads read neighbouring numbers.
template <class T>
__device__ __forceinline__ void load_tile(const LogitRows<T>& logits, int64_t start, T* tile) {
  const int n_classes = int(logits.n_classes), length = tile_row_length(n_classes);
  const int n_rows = rows_of_tile(start, logits.n_rows);
  const T* from = logits.data + start * logits.row_stride;
  if (logits.row_stride == 1) {
    for (int k = 0; k < n_classes; ++k) {
      if (int(threadIdx.x) < n_rows) {
        tile[int(threadIdx.x) * length + k] = from[threadIdx.x + k * logits.class_stride];
      }
    }
    return;
  }
  for (TileWalk at(int(threadIdx.x), n_classes); at.major < n_rows; at.advance(n_classes)) {
    tile[at.major * length + at.minor] = from[at.major * logits.row_stride + at.minor * logits.class_stride];
  }
}

// Copies the tile to the rows of a contiguous matrix [N, C].
template <class T>
__device__ __forceinline__ void store_tile(const T* tile, int64_t start, int64_t all_rows, int n_classes, T* matrix) {
  const int length = tile_row_length(n_classes), n_rows = rows_of_tile(start, all_rows);
  T* to = matrix + start * n_classes;
  for (TileWalk at(int(threadIdx.x), n_classes); at.major < n_rows; at.advance(n_classes)) {
    to[at.major * n_classes + at.minor] = tile[at.major * length + at.minor];
  }
}

__device__ __forceinline__ int64_t first_row_of_warp() {
  return int64_t(blockIdx.x) * kRowWarps + threadIdx.x / kWarpSize;
}

// Every 32nd class of row n for each lane, and -inf after the last.
template <int kPerLane, class T>
__device__ __forceinline__ void load_classes(const LogitRows<T>& logits, int64_t n, T (&values)[kPerLane]) {
  const int lane = int(threadIdx.x) % kWarpSize;
  const T* row = logits.data + n * logits.row_stride;
#pragma unroll
  for (int i = 0; i < kPerLane; ++i) {
    const int64_t k = i * kWarpSize + lane;
    values[i] = k < logits.n_classes ? row[k * logits.class_stride] : -T(__builtin_inff());
  }
}

}  // namespace lapal_ext
