// One pick of k-centre greedy: one pass over the pool.
//
//   nearest_n = min(nearest_n, min_l sum_j ((x_nj - c_lj) scale_j)^2)
//
// The pick is the free row with the largest nearest_n.
//
// Shapes: pool x [N, D] in any storage dtype, centres c [L, D], scale [D], nearest and taken [N].
//
// Layout: pool rows are contiguous, at any distance; centres and scale are contiguous. If all of them are aligned to 16
// bytes, a lane reads as in pool_rows.cuh.
//
// Parallel over rows, kRowsAtOnce per warp: the rows share the loads of the centres. Centres follow one after the
// other, and a row is read again for each of them, from the first-level cache where it fits. Each lane sums its own
// elements in order, then the lanes are added. The order depends on D and the dtypes only, so equal rows tie exactly,
// and a copy of a centre has distance zero.
//
// Two launches: the distances, with the best row of each block; then the best of all blocks. Workspace: a candidate per
// block. The order of candidates is total, so the pick does not depend on the grid.
//
// Limit: for one centre memory, one read of the pool; for many, three instructions per feature, centre and row.
#pragma once

#include "cuda/shared/pool_rows.cuh"

namespace lapal_ext {

template <class T, class S>
struct NearestRows {
  const S* pool;
  int64_t row_stride;
  int64_t n_rows;
  int64_t n_features;
  const T* centres;  // [L, D]
  int64_t n_centres;
  const T* scale;
  T* nearest;
  int64_t nearest_stride;
  TakenRows taken;
  Candidate<T>* candidates;  // [blocks]
};

// sums[r] = the part of this lane of the squared distance from a centre to row r.
template <bool kAligned, class T, class S>
__device__ __forceinline__ void add_squares(const NearestRows<T, S>& all, const S* const (&rows)[kRowsAtOnce],
                                            const T* centre, int lane, T (&sums)[kRowsAtOnce]) {
  constexpr int kPack = kPackSize<S>;
  constexpr int kPart = kPack < kPackSize<T> ? kPack : kPackSize<T>;  // of a centre that is in registers at once
  for (int64_t j = lane * kPack; j < all.n_features; j += kWarpSize * kPack) {
    const int64_t left = all.n_features - j;
    S elements[kRowsAtOnce][kPack];
#pragma unroll
    for (int r = 0; r < kRowsAtOnce; ++r) {
      load_values<kAligned>(rows[r] + j, left, elements[r]);
    }
#pragma unroll
    for (int part = 0; part < kPack; part += kPart) {
      T points[kPart], factors[kPart];
      load_values<kAligned>(centre + j + part, left - part, points);
      load_values<kAligned>(all.scale + j + part, left - part, factors);
#pragma unroll
      for (int r = 0; r < kRowsAtOnce; ++r) {
#pragma unroll
        for (int i = 0; i < kPart; ++i) {
          const T gap = (widen<T>(elements[r][part + i]) - points[i]) * factors[i];
          sums[r] += gap * gap;
        }
      }
    }
  }
}

template <bool kAligned, class T, class S>
__global__ void __launch_bounds__(kPoolBlock, 1) nearest_kernel(NearestRows<T, S> all) {
  LAPAL_SHARED(Candidate<T>, scratch, kPoolWarps);
  const int lane = int(threadIdx.x) % kWarpSize;
  const int64_t warp = int64_t(blockIdx.x) * kPoolWarps + threadIdx.x / kWarpSize;
  const int64_t step = int64_t(gridDim.x) * kPoolWarps * kRowsAtOnce;
  Candidate<T> best = no_candidate<T>();
  for (int64_t first = warp * kRowsAtOnce; first < all.n_rows; first += step) {
    const S* rows[kRowsAtOnce];
#pragma unroll
    for (int r = 0; r < kRowsAtOnce; ++r) {
      // Rows after the last repeat it, so that all rows have the same loop.
      rows[r] = all.pool + (first + r < all.n_rows ? first + r : all.n_rows - 1) * all.row_stride;
    }
    const int64_t n = first + lane;  // of the row whose distance this lane keeps
    const bool keeps = lane < kRowsAtOnce && n < all.n_rows;
    T nearest = keeps ? all.nearest[n * all.nearest_stride] : T(0);
    for (int64_t l = 0; l < all.n_centres; ++l) {
      T sums[kRowsAtOnce] = {};
      add_squares<kAligned>(all, rows, all.centres + l * all.n_features, lane, sums);
#pragma unroll
      for (int r = 0; r < kRowsAtOnce; ++r) {
        const T square = warp_reduce(sums[r], Sum());
        // A NaN is stored, so that the caller can detect it.
        if (lane == r && (square < nearest || square != square)) {
          nearest = square;
        }
      }
    }
    if (keeps) {
      all.nearest[n * all.nearest_stride] = nearest;
      best = all.taken.better_of(nearest, n, best);
    }
  }
  store_candidate<kPoolBlock>(best, scratch, all.candidates);
}

}  // namespace lapal_ext
