// Sherman-Morrison downdate of B covariances.
//
//   u = Sigma phi;  Sigma' = Sigma - s / (1 + s phi.u) u u^T, NaN where 1 + s phi.u <= 0.
//
// Shapes: covariance [B, D, D], features [B, D], curvature [B] -> Sigma' [B, D, D], u [B, D]; all contiguous.
//
// Sigma is needed twice: for u, and again after all of u. If a matrix fits into the shared memory of a block, one block
// per posterior reads it once. Larger matrices take two kernels: u with a warp per row, then Sigma' with a block per
// tile of rows. They run for as many posteriors at a time as fit into the second-level cache, so the second read is
// from cache. The product u_i u_j is rounded before it is multiplied by the shrinkage, so Sigma' is symmetric to the
// bit where Sigma is. The order of each sum depends on D only.
//
// Limit: memory, one read of Sigma and one write of Sigma'.
#pragma once

#include "cuda/shared/reduce.cuh"

namespace lapal_ext {

constexpr int kUpdateBlock = 256;  // threads; eight rows at a time
constexpr int kUpdateWarps = kUpdateBlock / kWarpSize;

template <class T>
struct Downdates {
  const T* covariance;
  const T* features;
  const T* curvature;
  int64_t n_matrices;
  int64_t size;
  T* result;
  T* direction;
};

// u_i, the sum of one row: every 32nd product in each lane, then the sum over lanes. Calls keep(j, value) for every
// element.
template <class T, class Keep>
__device__ __forceinline__ T row_product(const T* row, const T* features, int64_t size, Keep&& keep) {
  T sum = T(0);
  for (int64_t j = threadIdx.x % kWarpSize; j < size; j += kWarpSize) {
    const T value = row[j];
    keep(j, value);
    sum += value * features[j];
  }
  return warp_reduce(sum, Sum());
}

// s / (1 + s v), with v = phi.u summed in float64; by all threads of the block.
template <class T>
__device__ __forceinline__ T shrinkage_of(const T* features, const T* direction, int64_t size, T curvature,
                                          double* scratch) {
  double variance = 0.0;
  for (int64_t i = threadIdx.x; i < size; i += kUpdateBlock) {
    variance += double(features[i]) * double(direction[i]);
  }
  variance = block_reduce<kUpdateBlock>(variance, 0.0, Sum(), scratch);
  const double scale = 1.0 + double(curvature) * variance;
  return scale > 0.0 ? T(double(curvature) / scale) : T(__builtin_nanf(""));
}

template <class T>
__device__ __forceinline__ void downdate_row(const T* row, const T* direction, T factor, T shrinkage, int64_t size,
                                             T* result) {
  for (int64_t j = threadIdx.x % kWarpSize; j < size; j += kWarpSize) {
    const T product = factor * direction[j];
    result[j] = row[j] - shrinkage * product;
  }
}

// A posterior per block, Sigma [D, D] and then u [D] in shared memory.
template <class T>
__global__ void __launch_bounds__(kUpdateBlock) downdate_small_kernel(Downdates<T> all) {
  LAPAL_DYN_SHARED(T, tile);
  LAPAL_SHARED(double, scratch, kUpdateWarps);
  const int64_t size = all.size, area = size * size;
  T* u = tile + area;
  const int warp = int(threadIdx.x) / kWarpSize;
  for (int64_t m = blockIdx.x; m < all.n_matrices; m += gridDim.x) {
    const T* covariance = all.covariance + m * area;
    const T* features = all.features + m * size;
    for (int64_t i = warp; i < size; i += kUpdateWarps) {
      T* kept = tile + i * size;
      const T sum = row_product(covariance + i * size, features, size, [kept](int64_t j, T value) { kept[j] = value; });
      if (threadIdx.x % kWarpSize == 0) {
        u[i] = sum;
        all.direction[m * size + i] = sum;
      }
    }
    __syncthreads();
    const T shrinkage = shrinkage_of(features, u, size, all.curvature[m], scratch);
    for (int64_t i = warp; i < size; i += kUpdateWarps) {
      downdate_row(tile + i * size, u, u[i], shrinkage, size, all.result + m * area + i * size);
    }
    __syncthreads();  // the next matrix overwrites this one
  }
}

// u, a row per warp.
template <class T>
__global__ void __launch_bounds__(kUpdateBlock) direction_kernel(Downdates<T> all) {
  const int64_t size = all.size, n_rows = all.n_matrices * size;
  const int64_t first = int64_t(blockIdx.x) * kUpdateWarps + threadIdx.x / kWarpSize;
  for (int64_t row = first; row < n_rows; row += int64_t(gridDim.x) * kUpdateWarps) {
    const T* features = all.features + row / size * size;
    const T sum = row_product(all.covariance + row * size, features, size, [](int64_t, T) {});
    if (threadIdx.x % kWarpSize == 0) {
      all.direction[row] = sum;
    }
  }
}

// Sigma' from u, in tiles of `tile_rows` rows of one matrix. Each block computes v again, which is D products.
template <class T>
__global__ void __launch_bounds__(kUpdateBlock) downdate_kernel(Downdates<T> all, int64_t tile_rows) {
  LAPAL_SHARED(double, scratch, kUpdateWarps);
  const int64_t size = all.size;
  const int64_t tiles_per_matrix = (size + tile_rows - 1) / tile_rows;
  for (int64_t tile = blockIdx.x; tile < all.n_matrices * tiles_per_matrix; tile += gridDim.x) {
    const int64_t m = tile / tiles_per_matrix, start = tile % tiles_per_matrix * tile_rows;
    const int64_t end = start + tile_rows < size ? start + tile_rows : size;
    const T* u = all.direction + m * size;
    const T shrinkage = shrinkage_of(all.features + m * size, u, size, all.curvature[m], scratch);
    for (int64_t i = start + threadIdx.x / kWarpSize; i < end; i += kUpdateWarps) {
      const int64_t row = (m * size + i) * size;
      downdate_row(all.covariance + row, u, u[i], shrinkage, size, all.result + row);
    }
  }
}

}  // namespace lapal_ext
