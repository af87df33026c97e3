// Reductions over the lanes of a warp and over the threads of a block, each in one fixed order.
//
// All lanes or threads call them together, and all get the same result to the bit: the joins in this file are
// commutative.
#pragma once

#include "cuda/shared/portability.h"

namespace lapal_ext {

struct Sum {
  template <class T>
  __device__ __forceinline__ T operator()(T a, T b) const {
    return a + b;
  }
};

// The larger of two numbers. A NaN is ignored: it appears again when the maximum is subtracted from it.
struct Maximum {
  template <class T>
  __device__ __forceinline__ T operator()(T a, T b) const {
    return a > b || b != b ? a : b;
  }
};

struct Minimum {
  template <class T>
  __device__ __forceinline__ T operator()(T a, T b) const {
    return a < b ? a : b;
  }
};

// Joins the moments of two sets of classes.
template <Moment moment>
struct JoinMoments {
  template <class T>
  __device__ __forceinline__ T operator()(T a, T b) const {
    if constexpr (moment == Moment::largest) {
      return a > b ? a : b;
    } else {
      static_assert(moment == Moment::squares || moment == Moment::lifted_squares || moment == Moment::energy,
                    "a moment without a join");
      return a + b;
    }
  }
};

// A row or class with its value. A negative index means none.
template <class T>
struct Candidate {
  T value;
  int64_t index;
};

// The order of every argmax: the largest value, of equal ones the lowest index, a NaN before all, none after all. It is
// a total order and the same as that of Best in cpu/pool/rows.h.
struct Better {
  template <class T>
  __device__ __forceinline__ Candidate<T> operator()(const Candidate<T>& a, const Candidate<T>& b) const {
    if (a.index < 0 || b.index < 0) {
      return a.index < 0 ? b : a;
    }
    const bool a_is_nan = a.value != a.value, b_is_nan = b.value != b.value;
    const bool ties = (a_is_nan && b_is_nan) || a.value == b.value;
    const bool a_wins = ties ? a.index < b.index : a_is_nan || (!b_is_nan && a.value > b.value);
    return a_wins ? a : b;
  }
};

template <class T>
__device__ __forceinline__ Candidate<T> no_candidate() {
  return {-T(__builtin_inff()), -1};
}

template <class T>
__device__ __forceinline__ T shuffle_xor(T value, int lane_mask) {
  return __shfl_xor_sync(kFullWarp, value, lane_mask);
}

template <class T>
__device__ __forceinline__ Candidate<T> shuffle_xor(const Candidate<T>& candidate, int lane_mask) {
  return {__shfl_xor_sync(kFullWarp, candidate.value, lane_mask),
          int64_t(__shfl_xor_sync(kFullWarp, static_cast<long long>(candidate.index), lane_mask))};
}

// Joins the values of each group of kWidth neighbouring lanes, a power of two. Every lane of the warp must call it.
template <int kWidth = kWarpSize, class T, class Join>
__device__ __forceinline__ T warp_reduce(T value, Join join) {
  static_assert(kWidth > 0 && kWidth <= kWarpSize && (kWidth & (kWidth - 1)) == 0, "a power of two, at most a warp");
#pragma unroll
  for (int lane_mask = kWidth / 2; lane_mask > 0; lane_mask /= 2) {
    value = join(value, shuffle_xor(value, lane_mask));
  }
  return value;
}

// Joins the values of a block of kBlockSize threads in one dimension. `scratch` is shared memory for one value per
// warp. Several reductions may use the same.
template <int kBlockSize, class T, class Join>
__device__ __forceinline__ T block_reduce(T value, T identity, Join join, T* scratch) {
  constexpr int kWarps = kBlockSize / kWarpSize;
  static_assert(kBlockSize % kWarpSize == 0 && kWarps <= kWarpSize, "whole warps, at most as many as lanes");
  const int lane = int(threadIdx.x) % kWarpSize, warp = int(threadIdx.x) / kWarpSize;
  value = warp_reduce(value, join);
  __syncthreads();  // other threads may still read `scratch` for the last reduction
  if (lane == 0) {
    scratch[warp] = value;
  }
  __syncthreads();
  return warp_reduce(lane < kWarps ? scratch[lane] : identity, join);
}

}  // namespace lapal_ext
