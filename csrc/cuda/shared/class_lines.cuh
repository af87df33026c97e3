// The softmax of rows whose logits are class-major, [C, N]: a thread takes a row and loops over the classes, so that
// the threads of a warp read neighbouring numbers of one class.
//
// No logit is kept. A pass over the classes reads the logits again, mostly from cache, and computes their exponentials
// again, which takes less time than the reading.
#pragma once

#include "cuda/shared/reduce.cuh"
#include "shared/logit_rows.h"

namespace lapal_ext {

constexpr int kLineBlock =
    64;  // threads, and rows of a tile; few, so that ten thousand rows give each multiprocessor one

// The tiles of n rows.
__host__ __device__ constexpr int64_t line_tiles(int64_t n_rows) {
  return (n_rows + kLineBlock - 1) / kLineBlock;
}

// The first class with the largest of logit(0), logit(1), ... A NaN is ignored: it appears again when the maximum is
// subtracted from it.
template <class T, class Logit>
__device__ __forceinline__ Candidate<T> largest_logit(int64_t n_classes, Logit logit) {
  Candidate<T> winner = {-T(__builtin_inff()), 0};
#pragma unroll 4
  for (int64_t k = 0; k < n_classes; ++k) {
    const T value = logit(k);
    winner.index = value > winner.value ? k : winner.index;
    winner.value = value > winner.value ? value : winner.value;
  }
  return winner;
}

// The sum of the exponentials of a row, relative to its largest logit. Call add() for every class, then finish().
template <class T>
struct LineSoftmax {
  T largest;
  T rest = T(0);   // sum of the exponentials of all classes but the winner
  T ties = T(-1);  // classes as large as the largest, beyond the first
  T inverse = T(0);

  __device__ __forceinline__ explicit LineSoftmax(T largest) : largest(largest) {}

  // Returns the exponential. A NaN is in the sum.
  __device__ __forceinline__ T add(T logit) {
    const T shifted = logit - largest;
    const T winner = shifted >= T(0) ? T(1) : T(0);
    const T exponential = exp_nonpositive(shifted);
    rest += exponential - winner;
    ties += winner;
    return exponential;
  }
  __device__ __forceinline__ void finish() {
    rest += ties;
    inverse = T(1) / (T(1) + rest);
  }
  __device__ __forceinline__ T probability(T logit) const {
    return exp_nonpositive(logit - largest) * inverse;
  }
};

}  // namespace lapal_ext
