// Predictive probabilities of many rows.
//
//   p_n = softmax(z_n / sqrt(1 + kappa v_n)), or softmax(z_n) without v.
//
// Shapes: logits z [N, C] with any strides, variance v [N] -> [N, C], contiguous.
//
// For few classes, a thread takes a row. A block copies its rows to shared memory and back in the order of memory, for
// contiguous rows and for contiguous classes. A row in shared memory has an odd length, so that the threads of a warp
// read from 32 banks. For many classes, a warp takes a row, each lane every 32nd class, and keeps them in registers
// between the maximum and the sum. Rows that are too long for that are read three times, the last two from cache.
//
// Limit: memory, one read and one write of N C numbers. An exponential per number is half of that time on an H100.
#pragma once

#include "cuda/shared/reduce.cuh"
#include "cuda/shared/row_tile.cuh"

namespace lapal_ext {

template <class T>
struct PredictiveRows {
  LogitRows<T> logits;
  const T* variance;  // null for the plugin link
  int64_t variance_stride;
  T kappa;
  T* probabilities;  // [N, C]
};

template <class T>
__device__ __forceinline__ T link_of(const PredictiveRows<T>& rows, int64_t n) {
  return rows.variance == nullptr ? T(1) : mean_field(rows.variance[n * rows.variance_stride], rows.kappa);
}

// A row per thread.
template <class T>
__global__ void __launch_bounds__(kTileRows) predictive_tile_kernel(PredictiveRows<T> rows) {
  LAPAL_DYN_SHARED(T, tile);
  const int n_classes = int(rows.logits.n_classes), length = tile_row_length(n_classes);
  for (int64_t start = int64_t(blockIdx.x) * kTileRows; start < rows.logits.n_rows;
       start += int64_t(gridDim.x) * kTileRows) {
    load_tile(rows.logits, start, tile);
    __syncthreads();
    const int64_t n = start + threadIdx.x;
    if (n < rows.logits.n_rows) {
      T* row = tile + int(threadIdx.x) * length;
      const T link = link_of(rows, n);
      T best = -T(__builtin_inff());
      for (int k = 0; k < n_classes; ++k) {
        best = row[k] > best ? row[k] : best;
      }
      T total = T(0);
      for (int k = 0; k < n_classes; ++k) {
        const T term = exp_nonpositive((row[k] - best) * link);
        row[k] = term;
        total += term;
      }
      const T inverse = T(1) / total;
      for (int k = 0; k < n_classes; ++k) {
        row[k] *= inverse;
      }
    }
    __syncthreads();
    store_tile(tile, start, rows.logits.n_rows, n_classes, rows.probabilities);
    __syncthreads();  // the next tile overwrites this one
  }
}

// A row per warp, with kPerLane classes of each lane in registers.
template <int kPerLane, class T>
__global__ void __launch_bounds__(kRowWarps* kWarpSize) predictive_warp_kernel(PredictiveRows<T> rows) {
  const int lane = int(threadIdx.x) % kWarpSize;
  const int n_classes = int(rows.logits.n_classes);
  for (int64_t n = first_row_of_warp(); n < rows.logits.n_rows; n += int64_t(gridDim.x) * kRowWarps) {
    T values[kPerLane];
    load_classes(rows.logits, n, values);
    const T link = link_of(rows, n);
    T best = -T(__builtin_inff());
#pragma unroll
    for (int i = 0; i < kPerLane; ++i) {
      best = values[i] > best ? values[i] : best;
    }
    best = warp_reduce(best, Maximum());
    T total = T(0);
#pragma unroll
    for (int i = 0; i < kPerLane; ++i) {
      values[i] = exp_nonpositive((values[i] - best) * link);
      total += i * kWarpSize + lane < n_classes ? values[i] : T(0);
    }
    const T inverse = T(1) / warp_reduce(total, Sum());
    T* out = rows.probabilities + n * n_classes;
#pragma unroll
    for (int i = 0; i < kPerLane; ++i) {
      const int k = i * kWarpSize + lane;
      if (k < n_classes) {
        out[k] = values[i] * inverse;
      }
    }
  }
}

// A row per warp, for rows of any length.
template <class T>
__global__ void __launch_bounds__(kRowWarps* kWarpSize) predictive_long_kernel(PredictiveRows<T> rows) {
  const int lane = int(threadIdx.x) % kWarpSize;
  const int64_t n_classes = rows.logits.n_classes, stride = rows.logits.class_stride;
  for (int64_t n = first_row_of_warp(); n < rows.logits.n_rows; n += int64_t(gridDim.x) * kRowWarps) {
    const T* row = rows.logits.data + n * rows.logits.row_stride;
    const T link = link_of(rows, n);
    T best = -T(__builtin_inff());
#pragma unroll 4
    for (int64_t k = lane; k < n_classes; k += kWarpSize) {
      best = row[k * stride] > best ? row[k * stride] : best;
    }
    best = warp_reduce(best, Maximum());
    T total = T(0);
#pragma unroll 4
    for (int64_t k = lane; k < n_classes; k += kWarpSize) {
      total += exp_nonpositive((row[k * stride] - best) * link);
    }
    const T inverse = T(1) / warp_reduce(total, Sum());
    T* out = rows.probabilities + n * n_classes;
#pragma unroll 4
    for (int64_t k = lane; k < n_classes; k += kWarpSize) {
      out[k] = exp_nonpositive((row[k * stride] - best) * link) * inverse;
    }
  }
}

}  // namespace lapal_ext
