// A softmax that is updated by a few classes at a time, so that no logit has to be kept.
#pragma once

#include "cuda/shared/portability.h"

namespace lapal_ext {

// The softmax of the classes so far, relative to the largest of them.
template <Loss kind, class T>
struct RunningSoftmax {
  T best = -T(__builtin_inff());
  T rest = T(0);    // sum of the exponentials of all but the winner
  T moment = T(0);  // see shared/softmax_sums.h
  T label = T(0);   // logit of the target
  int winner = 0;

  // Makes `larger` the largest logit: the winner so far becomes a losing class.
  __device__ __forceinline__ void raise(T larger, T link) {
    const T shifted = (best - larger) * link;
    const T factor = exp_nonpositive(shifted);
    if constexpr (needs_of(kind).moment == Moment::energy) {
      moment = factor * (moment + shifted * (T(1) + rest));
    } else if constexpr (needs_of(kind).moment == Moment::squares) {
      moment = factor * factor * (T(1) + moment);
    } else {
      static_assert(needs_of(kind).moment == Moment::none, "a loss whose moment is not rescaled");
    }
    rest = factor * (T(1) + rest);
  }

  // Adds classes [first, first + count).
  template <int kGroup>
  __device__ __forceinline__ void add(const T (&values)[kGroup], int first, int count, T link, int target) {
    T largest = best;
#pragma unroll
    for (int k = 0; k < kGroup; ++k) {
      const bool wins = k < count && values[k] > largest;
      largest = wins ? values[k] : largest;
      if constexpr (needs_of(kind).targets) {
        winner = wins ? first + k : winner;
        label = first + k == target ? values[k] : label;
      }
    }
    if constexpr (needs_of(kind).sums) {
      T ties = T(0);  // classes as large as the largest, beyond the winner
      if (first == 0 || largest > best) {
        if (first > 0) {
          raise(largest, link);
        }
        ties = T(-1);
      }
      T sum = T(0);
#pragma unroll
      for (int k = 0; k < kGroup; ++k) {
        if (k < count) {
          const T shifted = (values[k] - largest) * link;
          const bool loses = !(shifted >= T(0));  // a NaN is in the sum
          const T other = losing_term(shifted, loses);
          sum += other;
          ties += loses ? T(0) : T(1);
          moment = add_moment<needs_of(kind).moment>(moment, other, shifted);
        }
      }
      rest += sum + ties;
      moment = add_ties<needs_of(kind).moment>(moment, ties);
    }
    best = largest;
  }
};

}  // namespace lapal_ext
