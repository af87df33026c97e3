// How much a label of each row would tell, from its predictive alone.
//
//   utility of softmax(z_n / sqrt(1 + kappa v_n)), or of softmax(z_n) without v; formulas in likelihood.h.
//
// Shapes: logits z [N, C] with any strides, variance v [N], scale [N] -> [N].
//
// Few classes: a thread takes a row of a tile in shared memory; many: a warp takes a row and keeps it in registers, as
// predictive does. Two passes over a row: the winner, then the exponentials of the others and what the utility sums of
// them. The kind `variance` reads no logits.
//
// Limit: memory, one read of N C numbers. An exponential per number is two thirds of that time on an H100.
#pragma once

#include "cuda/reduce.cuh"
#include "cuda/row_tile.cuh"

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
__global__ void __launch_bounds__(kTileRows) utility_tile_kernel(UtilityRows<T> rows) {
  constexpr Moment kMoment = moment_of(kind);
  LAPAL_DYN_SHARED(T, tile);
  const int n_classes = int(rows.logits.n_classes), length = tile_row_length(n_classes);
  for (int64_t start = int64_t(blockIdx.x) * kTileRows; start < rows.logits.n_rows;
       start += int64_t(gridDim.x) * kTileRows) {
    load_tile(rows.logits, start, tile);
    __syncthreads();
    const int64_t n = start + threadIdx.x;
    if (n < rows.logits.n_rows) {
      const T* row = tile + int(threadIdx.x) * length;
      const T link = link_of(rows, n);
      T best = -T(__builtin_inff());
      int winner = 0;
      for (int k = 0; k < n_classes; ++k) {
        const bool wins = row[k] > best;
        best = wins ? row[k] : best;
        winner = wins ? k : winner;
      }
      T rest = T(0), moment = T(0);
      for (int k = 0; k < n_classes; ++k) {
        const T shifted = (row[k] - best) * link;
        const T other = losing_term(shifted, k != winner);
        rest += other;
        moment = add_moment<kMoment>(moment, other, shifted);
      }
      rows.utilities[n] = utility<kind>(rest, moment, scale_of(rows, n));
    }
    __syncthreads();  // the next tile overwrites this one
  }
}

// What one lane has seen of its row, joined with the other lanes.
template <Utility kind, class T>
__device__ __forceinline__ void finish_row(const UtilityRows<T>& rows, int64_t n, T rest, T moment) {
  constexpr Moment kMoment = moment_of(kind);
  rest = warp_reduce(rest, Sum());
  if constexpr (kMoment != Moment::none) {
    moment = warp_reduce(moment, JoinMoments<kMoment>());
  }
  if (threadIdx.x % kWarpSize == 0) {
    rows.utilities[n] = utility<kind>(rest, moment, scale_of(rows, n));
  }
}

// A row per warp, with kPerLane classes of each lane in registers.
template <Utility kind, int kPerLane, class T>
__global__ void __launch_bounds__(kRowWarps* kWarpSize) utility_warp_kernel(UtilityRows<T> rows) {
  const int lane = int(threadIdx.x) % kWarpSize;
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
    // Any class with the largest logit may be the winner: the others have the exponential one.
    int winner = int(rows.logits.n_classes);
#pragma unroll
    for (int i = kPerLane - 1; i >= 0; --i) {
      winner = values[i] == best ? i * kWarpSize + lane : winner;
    }
    winner = warp_reduce(winner, Minimum());
    T rest = T(0), moment = T(0);
#pragma unroll
    for (int i = 0; i < kPerLane; ++i) {
      const int k = i * kWarpSize + lane;
      const T shifted = (values[i] - best) * link;
      const T other = losing_term(shifted, k != winner && k < rows.logits.n_classes);
      rest += other;
      moment = k < rows.logits.n_classes ? add_moment<moment_of(kind)>(moment, other, shifted) : moment;
    }
    finish_row<kind>(rows, n, rest, moment);
  }
}

// A row per warp, for rows of any length.
template <Utility kind, class T>
__global__ void __launch_bounds__(kRowWarps* kWarpSize) utility_long_kernel(UtilityRows<T> rows) {
  const int lane = int(threadIdx.x) % kWarpSize;
  const int64_t n_classes = rows.logits.n_classes, stride = rows.logits.class_stride;
  for (int64_t n = first_row_of_warp(); n < rows.logits.n_rows; n += int64_t(gridDim.x) * kRowWarps) {
    const T* row = rows.logits.data + n * rows.logits.row_stride;
    const T link = link_of(rows, n);
    Candidate<T> best = no_candidate<T>();
    for (int64_t k = lane; k < n_classes; k += kWarpSize) {
      best = Better()(best, Candidate<T>{row[k * stride], k});
    }
    best = warp_reduce(best, Better());
    T rest = T(0), moment = T(0);
    for (int64_t k = lane; k < n_classes; k += kWarpSize) {
      const T shifted = (row[k * stride] - best.value) * link;
      const T other = losing_term(shifted, k != best.index);
      rest += other;
      moment = add_moment<moment_of(kind)>(moment, other, shifted);
    }
    finish_row<kind>(rows, n, rest, moment);
  }
}

// The utility `variance`.
template <class T>
__global__ void __launch_bounds__(kTileRows) copy_variance_kernel(UtilityRows<T> rows) {
  const int64_t step = int64_t(gridDim.x) * kTileRows;
  for (int64_t n = int64_t(blockIdx.x) * kTileRows + threadIdx.x; n < rows.logits.n_rows; n += step) {
    rows.utilities[n] = rows.variance[n * rows.variance_stride];
  }
}

}  // namespace lapal_ext
