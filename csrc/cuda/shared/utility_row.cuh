// Utility of one row, for a thread or a warp; formulas in shared/utilities.h.
//
// Two passes over the classes: one finds the winner, one sums the exponentials of the others.
#pragma once

#include "cuda/shared/reduce.cuh"

namespace lapal_ext {

// For one thread and contiguous classes.
template <Utility kind, class T>
__device__ __forceinline__ T utility_of_row(const T* row, int n_classes, T link, T scale) {
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
    moment = add_moment<needs_of(kind).moment>(moment, other, shifted);
  }
  return utility<kind>(rest, moment, scale);
}

// Joins the sums of the lanes. Every lane has the same utility.
template <Utility kind, class T>
__device__ __forceinline__ T utility_of_parts(T rest, T moment, T scale) {
  constexpr Moment kMoment = needs_of(kind).moment;
  rest = warp_reduce(rest, Sum());
  if constexpr (kMoment != Moment::none) {
    moment = warp_reduce(moment, JoinMoments<kMoment>());
  }
  return utility<kind>(rest, moment, scale);
}

// For a warp with every 32nd class in the registers of each lane, as load_classes() loads them.
template <Utility kind, int kPerLane, class T>
__device__ __forceinline__ T utility_of_lanes(const T (&values)[kPerLane], int64_t n_classes, T link, T scale) {
  const int lane = int(threadIdx.x) % kWarpSize;
  T best = -T(__builtin_inff());
#pragma unroll
  for (int i = 0; i < kPerLane; ++i) {
    best = values[i] > best ? values[i] : best;
  }
  best = warp_reduce(best, Maximum());
  // Any class with the largest logit may be the winner: the exponential of the others is one.
  int winner = int(n_classes);
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
    const T other = losing_term(shifted, k != winner && k < n_classes);
    rest += other;
    moment = k < n_classes ? add_moment<needs_of(kind).moment>(moment, other, shifted) : moment;
  }
  return utility_of_parts<kind>(rest, moment, scale);
}

// For a warp and classes in memory. Each lane reads every 32nd class.
template <Utility kind, class T>
__device__ __forceinline__ T utility_of_long_row(const T* row, int64_t stride, int64_t n_classes, T link, T scale) {
  const int lane = int(threadIdx.x) % kWarpSize;
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
    moment = add_moment<needs_of(kind).moment>(moment, other, shifted);
  }
  return utility_of_parts<kind>(rest, moment, scale);
}

}  // namespace lapal_ext
