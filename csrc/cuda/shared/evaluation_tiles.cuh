// Evaluation points in parts, for the ops that sum a loss or a gain over all points for each of many items.
//
// A block takes a pair (part, item) or a part with several items. Of a single item, a thread takes every kPointBlock-th
// point of the part. Every pair writes its own float64 sum to a workspace [parts, items]. A second launch adds the
// parts of each item in order, so the result depends on the sizes only. With at most kMaxParts parts, the workspace has
// at most 512 bytes per item.
#pragma once

#include "cuda/shared/reduce.cuh"

namespace lapal_ext {

constexpr int kPointBlock = 128;  // threads
constexpr int kPointWarps = kPointBlock / kWarpSize;
constexpr int64_t kMaxParts = 64;

struct EvaluationParts {
  int64_t n_eval;
  int64_t part_points;
  int64_t n_parts;

  __device__ __forceinline__ int64_t start(int64_t part) const {
    return part * part_points;
  }
  __device__ __forceinline__ int64_t end(int64_t part) const {
    return start(part) + part_points < n_eval ? start(part) + part_points : n_eval;
  }
};

// Parts of `least` points, or of a multiple of that if there would be too many parts.
inline EvaluationParts parts_of(int64_t n_eval, int64_t least) {
  const int64_t rounds = (n_eval + kMaxParts * least - 1) / (kMaxParts * least);
  const int64_t part_points = rounds * least;
  return {n_eval, part_points, (n_eval + part_points - 1) / part_points};
}

// sums[i] is the sum over the parts of item i, in order.
template <class T>
__global__ void __launch_bounds__(kPointBlock)
    add_parts_kernel(const double* partial_sums, int64_t n_parts, int64_t n_items, T* sums) {
  const int64_t step = int64_t(gridDim.x) * kPointBlock;
  for (int64_t i = int64_t(blockIdx.x) * kPointBlock + threadIdx.x; i < n_items; i += step) {
    double sum = 0.0;
    for (int64_t part = 0; part < n_parts; ++part) {
      sum += partial_sums[part * n_items + i];
    }
    sums[i] = T(sum);
  }
}

}  // namespace lapal_ext
