// Utility of a label for each row, from its predictive distribution.
//
//   utility of softmax(z_n / sqrt(1 + kappa v_n)), or of softmax(z_n) without v; formulas in shared/utilities.h.
//
// Shapes: logits z [N, C] with any strides, variance v [N], scale [N] -> [N].
//
// For few classes, a thread takes a row of a tile in shared memory. For many classes, a warp takes a row and keeps it
// in registers, as predictive.cuh does. The sums are in utility_row.cuh. The utility `variance` reads no logits.
//
// Limit: memory, one read of N C numbers. An exponential per number is two thirds of that time on an H100.
#pragma once

#include "cuda/shared/row_tile.cuh"
#include "cuda/shared/utility_row.cuh"

namespace lapal_ext {

template <class T>
struct UtilityRows {
  LogitRows<T> logits;
  const T* variance;  // null for the plugin link
  int64_t variance_stride;
  const T* scale;  // null unless the utility needs it
  int64_t scale_stride;
  T kappa;
  T* utilities;  // [N]
};

template <class T>
__device__ __forceinline__ T link_of(const UtilityRows<T>& rows, int64_t n) {
  return rows.variance == nullptr ? T(1) : mean_field(rows.variance[n * rows.variance_stride], rows.kappa);
}

template <class T>
__device__ __forceinline__ T scale_of(const UtilityRows<T>& rows, int64_t n) {
  return rows.scale == nullptr ? T(0) : rows.scale[n * rows.scale_stride];
}

// A row per thread.
template <Utility kind, class T>
__global__ void __launch_bounds__(kTileRows, 1) utility_tile_kernel(UtilityRows<T> rows) {
  LAPAL_DYN_SHARED(T, tile);
  const int n_classes = int(rows.logits.n_classes), length = tile_row_length(n_classes);
  for (int64_t start = int64_t(blockIdx.x) * kTileRows; start < rows.logits.n_rows;
       start += int64_t(gridDim.x) * kTileRows) {
    load_tile(rows.logits, start, tile);
    __syncthreads();
    const int64_t n = start + threadIdx.x;
    if (n < rows.logits.n_rows) {
      const T* row = tile + int(threadIdx.x) * length;
      rows.utilities[n] = utility_of_row<kind>(row, n_classes, link_of(rows, n), scale_of(rows, n));
    }
    __syncthreads();  // the next tile overwrites this one
  }
}

template <class T>
__device__ __forceinline__ void store_utility(const UtilityRows<T>& rows, int64_t n, T utility) {
  if (threadIdx.x % kWarpSize == 0) {
    rows.utilities[n] = utility;
  }
}

// A row per warp, with kPerLane classes of each lane in registers.
template <Utility kind, int kPerLane, class T>
__global__ void __launch_bounds__(kRowWarps* kWarpSize, 1) utility_warp_kernel(UtilityRows<T> rows) {
  for (int64_t n = first_row_of_warp(); n < rows.logits.n_rows; n += int64_t(gridDim.x) * kRowWarps) {
    T values[kPerLane];
    load_classes(rows.logits, n, values);
    store_utility(rows, n, utility_of_lanes<kind>(values, rows.logits.n_classes, link_of(rows, n), scale_of(rows, n)));
  }
}

// A row per warp, for rows of any length.
template <Utility kind, class T>
__global__ void __launch_bounds__(kRowWarps* kWarpSize, 1) utility_long_kernel(UtilityRows<T> rows) {
  for (int64_t n = first_row_of_warp(); n < rows.logits.n_rows; n += int64_t(gridDim.x) * kRowWarps) {
    const T* row = rows.logits.data + n * rows.logits.row_stride;
    const T link = link_of(rows, n), scale = scale_of(rows, n);
    store_utility(rows, n,
                  utility_of_long_row<kind>(row, rows.logits.class_stride, rows.logits.n_classes, link, scale));
  }
}

// The utility `variance`.
template <class T>
__global__ void __launch_bounds__(kTileRows, 1) copy_variance_kernel(UtilityRows<T> rows) {
  const int64_t step = int64_t(gridDim.x) * kTileRows;
  for (int64_t n = int64_t(blockIdx.x) * kTileRows + threadIdx.x; n < rows.logits.n_rows; n += step) {
    rows.utilities[n] = rows.variance[n * rows.variance_stride];
  }
}

}  // namespace lapal_ext
