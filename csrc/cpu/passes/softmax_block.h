// The two passes of a softmax over one block of logits, class-major, [C][lane]: the largest logit of each lane, then
// the sums of shared/softmax_sums.h.
#pragma once

#include "cpu/simd/lanes.h"
#include "shared/softmax_sums.h"

namespace lapal_ext {

// The largest of kCount values that are kLanes apart, in one lane. It compares pairs first, to shorten the chain of
// dependent comparisons. It is recursive, because clones do not unroll an inner loop, and a loop over lanes with an
// inner loop is not vectorised. A NaN may be skipped: its class makes the sums of the second pass NaN.
template <int kCount, class T>
LAPAL_HD T largest_of(const T* values) {
  if constexpr (kCount == 1) {
    return values[0];
  } else {
    const T left = largest_of<kCount / 2>(values);
    const T right = largest_of<kCount - kCount / 2>(values + kCount / 2 * kLanes<T>);
    return left > right ? left : right;
  }
}

// Raises best[lane] to the largest of kClasses logits [class][lane].
template <int kClasses, class T>
LAPAL_HD void raise_largest(const T* logits, T* best) {
#pragma omp simd
  for (int lane = 0; lane < kLanes<T>; ++lane) {
    const T candidate = largest_of<kClasses>(logits + lane);
    best[lane] = candidate > best[lane] ? candidate : best[lane];
  }
}

// First pass: the largest logit of each lane.
template <class T>
LAPAL_HD void find_largest(const T* logits, int64_t n_classes, T* largest) {
  constexpr int kUnrolled = 4;
  alignas(kBlockBytes) T best[kLanes<T>];
  fill_lanes(T(-__builtin_inff()), best);
  int64_t k = 0;
  for (; k + kUnrolled <= n_classes; k += kUnrolled) {
    raise_largest<kUnrolled>(logits + k * kLanes<T>, best);
  }
  for (; k < n_classes; ++k) {
    raise_largest<1>(logits + k * kLanes<T>, best);
  }
#pragma omp simd
  for (int lane = 0; lane < kLanes<T>; ++lane) {
    largest[lane] = best[lane];
  }
}

// The winner: the first class with the largest logit.
template <class T>
LAPAL_HD void find_winner(const T* logits, int64_t n_classes, const T* largest, LaneIndex<T>* winner) {
  constexpr int kL = kLanes<T>;
  alignas(kBlockBytes) T best[kL];
  alignas(kBlockBytes) LaneIndex<T> first[kL];
#pragma omp simd
  for (int lane = 0; lane < kL; ++lane) {
    best[lane] = largest[lane];
    first[lane] = 0;
  }
  for (int64_t k = n_classes - 1; k > 0; --k) {
    const T* row = logits + k * kL;
    const auto label = LaneIndex<T>(k);
#pragma omp simd
    for (int lane = 0; lane < kL; ++lane) {
      first[lane] = row[lane] == best[lane] ? label : first[lane];
    }
  }
#pragma omp simd
  for (int lane = 0; lane < kL; ++lane) {
    winner[lane] = logits[lane] == best[lane] ? LaneIndex<T>(0) : first[lane];
  }
}

// Second pass: the sums over all classes but the winner, relative to it. A class that ties with the winner counts as
// one without an exponential, so the index of the winner is not needed. `link` is the factor of the mean-field link in
// each lane; it is read only if kLinked.
template <Moment moment, bool kLinked, class T>
LAPAL_HD void sum_losing_classes(const T* logits, int64_t n_classes, const T* largest, const T* link, T* rest,
                                 T* moments) {
  constexpr int kL = kLanes<T>;
  alignas(kBlockBytes) T sum[kL];
  alignas(kBlockBytes) T second[kL];
  alignas(kBlockBytes) T ties[kL];  // classes as large as the largest, beyond the first
  alignas(kBlockBytes) T best[kL];
  alignas(kBlockBytes) T factor[kL];
#pragma omp simd
  for (int lane = 0; lane < kL; ++lane) {
    sum[lane] = T(0);
    second[lane] = T(0);
    ties[lane] = T(-1);
    best[lane] = largest[lane];
    factor[lane] = kLinked ? link[lane] : T(1);
  }
  for (int64_t k = 0; k < n_classes; ++k) {
    const T* row = logits + k * kL;
#pragma omp simd
    for (int lane = 0; lane < kL; ++lane) {
      T shifted = row[lane] - best[lane];
      if (kLinked) {
        shifted *= factor[lane];
      }
      const T winner = shifted >= T(0) ? T(1) : T(0);     // a NaN counts as a losing class, so it is in the sums
      const T other = exp_nonpositive(shifted) - winner;  // exactly zero for the winner
      sum[lane] += other;
      ties[lane] += winner;
      second[lane] = add_moment<moment>(second[lane], other, shifted);
    }
  }
#pragma omp simd
  for (int lane = 0; lane < kL; ++lane) {
    rest[lane] = sum[lane] + ties[lane];
    moments[lane] = add_ties<moment>(second[lane], ties[lane]);
  }
}

}  // namespace lapal_ext
