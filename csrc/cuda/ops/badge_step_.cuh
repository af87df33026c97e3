// One k-means++ pick of BADGE: one pass over the pool, then a draw.
//
//   |g (x) phi - g* (x) phi*|^2 = |g|^2 |phi|^2 + |g*|^2 |phi*|^2 - 2 (g.g*)(phi.phi*)
//
// A row keeps the smaller of this distance and its distance so far. The draw returns the first row at which the running
// sum of distances exceeds threshold times the total.
//
// Shapes: pool [N, D] in any storage dtype, u = phi* [D], gradient [N, C], g = g* [C], squared_norm and distance [N].
//
// Layout: pool rows are contiguous, all else has any strides. For few classes, a block copies the gradients of a tile
// to shared memory in the order of memory, for contiguous rows and for contiguous classes. For many classes the product
// with g* is a product of rows like that with phi*, of a copy if the rows are not contiguous.
//
// Three launches: phi.phi* (pool_rows.cuh); then the distances, one row per thread, with the sum of each tile of
// kTileRows rows; then the draw, by one block. Workspace: one or two products per row and a float64 sum per tile.
//
// The draw has three levels: segments of tiles, one per thread; tiles of the segment; rows of the tile. Sums are
// float64, each in an order that depends on N only. Two levels may round the same sum differently. If the sum of a
// level ends just below the target, the level takes its last nonzero member, so a row with distance zero is never
// drawn.
//
// Limit: memory, one read of the pool, one of the gradients, and 5 numbers per row. The draw is a chain of additions, a
// few microseconds for up to a million rows.
#pragma once

#include "cuda/shared/pool_rows.cuh"
#include "cuda/shared/row_tile.cuh"

namespace lapal_ext {

constexpr int kDrawBlock = 256;
constexpr double kSamePoint = 16.0;  // a distance below so many eps of its norms is rounding

template <class T>
struct BadgeRows {
  LogitRows<T> gradient;
  const T* g;
  const T* along_u;  // [N]
  const T* along_g;  // [N]; null if they are computed from tiles of the gradient
  const T* squared_norm;
  int64_t norm_stride;
  const T* centre_norm;
  T* distance;
  int64_t distance_stride;
  double* sums;  // [tiles]
};

template <class T>
__device__ __forceinline__ T lower_distance(const BadgeRows<T>& rows, int64_t n, T along_g) {
  constexpr T kEpsilon = T(1) / T(uint64_t(1) << detail::Number<T>::kMantissa);
  const T norms = rows.squared_norm[n * rows.norm_stride] + *rows.centre_norm;
  const T product = along_g * rows.along_u[n];
  const T computed = norms - T(2) * product;
  // A NaN is not rounding: it is stored, so that the caller can detect it.
  const T fresh = computed <= T(kSamePoint) * kEpsilon * norms ? T(0) : computed;
  T* at = rows.distance + n * rows.distance_stride;
  const T old = *at;
  const T distance = fresh < old || fresh != fresh ? fresh : old;
  *at = distance;
  return distance;
}

template <class T>
__global__ void __launch_bounds__(kTileRows, 1) badge_kernel(BadgeRows<T> rows) {
  LAPAL_SHARED(double, scratch, kTileRows / kWarpSize);
  LAPAL_DYN_SHARED(T, tile);
  const int n_classes = int(rows.gradient.n_classes), length = tile_row_length(n_classes);
  const int64_t n_rows = rows.gradient.n_rows;
  for (int64_t start = int64_t(blockIdx.x) * kTileRows; start < n_rows; start += int64_t(gridDim.x) * kTileRows) {
    const int64_t n = start + threadIdx.x;
    T along_g = T(0);
    if (rows.along_g == nullptr) {
      load_tile(rows.gradient, start, tile);
      __syncthreads();
      if (n < n_rows) {
        const T* row = tile + int(threadIdx.x) * length;
        for (int k = 0; k < n_classes; ++k) {
          along_g += row[k] * rows.g[k];
        }
      }
    } else if (n < n_rows) {
      along_g = rows.along_g[n];
    }
    const double distance = n < n_rows ? double(lower_distance(rows, n, along_g)) : 0.0;
    // It is a barrier for all threads, so the next tile may overwrite this one.
    const double sum = block_reduce<kTileRows>(distance, 0.0, Sum(), scratch);
    if (threadIdx.x == 0) {
      rows.sums[start / kTileRows] = sum;
    }
  }
}

// The member that was drawn, and the running sum before it. A negative index means none.
struct Drawn {
  int64_t index;
  double before;
};

// The first of `count` weights at which the running sum, which starts at `before`, exceeds the target. The loop does
// not end there: loads would have to wait for the sum.
template <class Weight>
__device__ __forceinline__ Drawn draw(int64_t count, double before, double target, Weight&& weight) {
  Drawn drawn{-1, before};
  bool above = false;
  double running = before;
#pragma unroll 4
  for (int64_t i = 0; i < count; ++i) {
    const double step = weight(i);
    const bool moves = step > 0.0 && !above;
    drawn.index = moves ? i : drawn.index;
    drawn.before = moves ? running : drawn.before;
    running += step;
    above |= running > target;
  }
  return drawn;
}

// The largest number below a positive one.
__device__ __forceinline__ double next_below(double value) {
  return detail::bit_cast<double>(detail::bit_cast<uint64_t>(value) - 1);
}

// The row that `threshold` draws, or -1 if all distances are zero or one is NaN. One block.
template <class T>
__global__ void __launch_bounds__(kDrawBlock, 1)
    badge_draw_kernel(BadgeRows<T> rows, int64_t n_tiles, const T* threshold, int64_t* index) {
  LAPAL_SHARED(double, segments, kDrawBlock);
  LAPAL_SHARED(double, distances, kTileRows);
  LAPAL_SHARED(double, target, 1);
  LAPAL_SHARED(Drawn, drawn, 1);
  const int64_t length = (n_tiles + kDrawBlock - 1) / kDrawBlock;
  const auto tiles_of = [&](int64_t segment) {
    const int64_t left = n_tiles - segment * length;
    return left < length ? left : length;
  };
  double sum = 0.0;
#pragma unroll 4
  for (int64_t i = 0; i < tiles_of(threadIdx.x); ++i) {
    sum += rows.sums[threadIdx.x * length + i];
  }
  segments[threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.x == 0) {
    double total = 0.0;
    for (int i = 0; i < kDrawBlock; ++i) {
      total += segments[i];
    }
    Drawn tile{-1, 0.0};
    if (total > 0.0) {
      // A threshold just below one may round to the total, and no running sum exceeds the total.
      const double wanted = double(*threshold) * total, largest = next_below(total);
      target[0] = wanted < largest ? wanted : largest;
      const Drawn segment = draw(kDrawBlock, 0.0, target[0], [&](int64_t i) { return segments[i]; });
      const double* sums = rows.sums + segment.index * length;
      tile = draw(tiles_of(segment.index), segment.before, target[0], [&](int64_t i) { return sums[i]; });
      tile.index += segment.index * length;
    }
    drawn[0] = tile;
  }
  __syncthreads();
  const int64_t start = drawn[0].index * kTileRows;
  if (start < 0) {
    if (threadIdx.x == 0) {
      *index = -1;
    }
    return;
  }
  const int n_rows = rows_of_tile(start, rows.gradient.n_rows);
  for (int i = int(threadIdx.x); i < n_rows; i += kDrawBlock) {
    distances[i] = double(rows.distance[(start + i) * rows.distance_stride]);
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    *index = start + draw(n_rows, drawn[0].before, target[0], [&](int64_t i) { return distances[i]; }).index;
  }
}

}  // namespace lapal_ext
