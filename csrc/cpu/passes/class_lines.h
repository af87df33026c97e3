// The softmax of a tile of rows whose logits are class-major, [C, N]: one line of memory per class.
//
// Rows are in lanes. A pass takes the lines one after the other, so that memory is read in order; what it has to
// remember of each row, such as the largest logit, is a line of its own in first-level cache.
#pragma once

#include <algorithm>
#include <cstdint>

#include "cpu/simd/lanes.h"
#include "shared/exponential.h"

namespace lapal_ext {

constexpr int64_t kLineRows = 256;  // rows of a tile

// The softmax of the rows of a tile: p_k = exponential_k inverse, and what its derivatives need.
template <class T>
struct LineSoftmax {
  alignas(kBlockBytes) T largest[kLineRows];            // logit
  alignas(kBlockBytes) T rest[kLineRows];               // sum of the exponentials of all classes but the winner
  alignas(kBlockBytes) T inverse[kLineRows];            // 1 / (1 + rest)
  alignas(kBlockBytes) LaneIndex<T> winner[kLineRows];  // the first class with the largest logit

  // Writes the exponentials of `count` rows, relative to the largest, to lines of `out`, `out_stride` apart.
  // line(k, i) is the logit of class k and row i. A NaN is in the sum of its row.
  template <class Line>
  LAPAL_HD void set(int64_t n_classes, int64_t count, Line line, T* out, int64_t out_stride) {
    alignas(kBlockBytes) T ties[kLineRows];  // classes as large as the largest, beyond the first
    for (int64_t k = 0; k < n_classes; ++k) {
      T* to = out + k * out_stride;
      if (k == 0) {
#pragma omp simd
        for (int64_t i = 0; i < count; ++i) {
          largest[i] = to[i] = line(k, i);
          winner[i] = 0;
          rest[i] = T(0);
          ties[i] = T(-1);
        }
      } else {
#pragma omp simd
        for (int64_t i = 0; i < count; ++i) {
          const T logit = line(k, i);
          to[i] = logit;
          winner[i] = logit > largest[i] ? LaneIndex<T>(k) : winner[i];
          largest[i] = logit > largest[i] ? logit : largest[i];
        }
      }
    }
    for (int64_t k = 0; k < n_classes; ++k) {
      T* to = out + k * out_stride;
#pragma omp simd
      for (int64_t i = 0; i < count; ++i) {
        const T shifted = to[i] - largest[i];
        const T wins = shifted >= T(0) ? T(1) : T(0);
        const T exponential = exp_nonpositive(shifted);
        to[i] = exponential;
        rest[i] += exponential - wins;
        ties[i] += wins;
      }
    }
#pragma omp simd
    for (int64_t i = 0; i < count; ++i) {
      rest[i] += ties[i];
      inverse[i] = T(1) / (T(1) + rest[i]);
    }
  }
};

// Sum of a line in float64, in an order that depends on `count` only.
template <class T>
LAPAL_HD double sum_of_line(const T* values, int64_t count) {
  constexpr int kSums = 8;
  double sums[kSums] = {};
  int64_t i = 0;
  for (; i + kSums <= count; i += kSums) {
#pragma omp simd
    for (int lane = 0; lane < kSums; ++lane) {
      sums[lane] += double(values[i + lane]);
    }
  }
  for (int lane = 0; i < count; ++i, ++lane) {
    sums[lane] += double(values[i]);
  }
  return ((sums[0] + sums[4]) + (sums[1] + sums[5])) + ((sums[2] + sums[6]) + (sums[3] + sums[7]));
}

}  // namespace lapal_ext
