// The passes of expected_lookahead over one block of evaluation points, with points in lanes: class-major, [C][lane].
//
// All labels of a candidate share t = logits - delta p. Label k adds delta to class k.
#pragma once

#include "cpu/simd/lanes.h"
#include "shared/single_logit_shift.h"

namespace lapal_ext {

// The softmax of t in one block, relative to the runner-up.
template <class T>
struct Softmax {
  alignas(kBlockBytes) T delta[kLanes<T>];
  alignas(kBlockBytes) T first[kLanes<T>];   // the largest of t
  alignas(kBlockBytes) T second[kLanes<T>];  // the second largest, equal to the first in a tie
  alignas(kBlockBytes) T rest[kLanes<T>];    // sum of weights of all but these two
  alignas(kBlockBytes) T energy[kLanes<T>];  // sum of weight times distance of all but the largest
  alignas(kBlockBytes) T p_winner[kLanes<T>];
};

// First pass: t = z - delta p, and its two largest.
template <class T>
LAPAL_HD void find_top_two(const T* logits, const T* p, int64_t n_classes, T* t, Softmax<T>& softmax) {
  constexpr int kL = kLanes<T>;
  alignas(kBlockBytes) T delta[kL];
  alignas(kBlockBytes) T first[kL];
  alignas(kBlockBytes) T second[kL];
#pragma omp simd
  for (int lane = 0; lane < kL; ++lane) {
    delta[lane] = softmax.delta[lane];
    first[lane] = -__builtin_inff();
    second[lane] = -__builtin_inff();
  }
  int64_t k = 0;
  for (; k + 2 <= n_classes; k += 2) {  // two classes at a time: a shorter chain of dependent comparisons
    const T p0 = p[k], p1 = p[k + 1];
#pragma omp simd
    for (int lane = 0; lane < kL; ++lane) {
      const T value0 = logits[k * kL + lane] - delta[lane] * p0;
      const T value1 = logits[(k + 1) * kL + lane] - delta[lane] * p1;
      const T larger = value0 > value1 ? value0 : value1, smaller = value0 > value1 ? value1 : value0;
      const T lower = larger < first[lane] ? larger : first[lane];
      const T next = lower > smaller ? lower : smaller;
      t[k * kL + lane] = value0;
      t[(k + 1) * kL + lane] = value1;
      second[lane] = next > second[lane] ? next : second[lane];
      first[lane] = larger > first[lane] ? larger : first[lane];
    }
  }
  if (k < n_classes) {
    const T probability = p[k];
#pragma omp simd
    for (int lane = 0; lane < kL; ++lane) {
      const T value = logits[k * kL + lane] - delta[lane] * probability;
      const T smaller = value < first[lane] ? value : first[lane];
      t[k * kL + lane] = value;
      second[lane] = smaller > second[lane] ? smaller : second[lane];
      first[lane] = value > first[lane] ? value : first[lane];
    }
  }
#pragma omp simd
  for (int lane = 0; lane < kL; ++lane) {
    softmax.first[lane] = first[lane];
    softmax.second[lane] = second[lane];
  }
}

// Second pass: the weights exp(t - second), capped at one, and their sums. t becomes t - second, which is positive for
// the winner only.
template <class T>
LAPAL_HD void sum_weights(const T* p, int64_t n_classes, T* shifted, T* weights, Softmax<T>& softmax) {
  constexpr int kL = kLanes<T>;
  alignas(kBlockBytes) T second[kL];
  alignas(kBlockBytes) T sum[kL];
  alignas(kBlockBytes) T tops[kL];  // number of classes not below the runner-up, less two: more than zero in a tie
  alignas(kBlockBytes) T energy[kL];
  alignas(kBlockBytes) T p_winner[kL];
#pragma omp simd
  for (int lane = 0; lane < kL; ++lane) {
    second[lane] = softmax.second[lane];
    sum[lane] = T(0);
    tops[lane] = T(-2);
    energy[lane] = T(0);
    p_winner[lane] = T(0);
  }
  for (int64_t k = 0; k < n_classes; ++k) {
    const T probability = p[k];
#pragma omp simd
    for (int lane = 0; lane < kL; ++lane) {
      const T above = shifted[k * kL + lane] - second[lane];
      const T below = above > T(0) ? T(0) : above;
      const T weight = exp_nonpositive(below);
      shifted[k * kL + lane] = above;
      weights[k * kL + lane] = weight;
      sum[lane] += above >= T(0) ? T(0) : weight;
      tops[lane] += above >= T(0) ? T(1) : T(0);
      energy[lane] -= weight * below;
      p_winner[lane] = above > T(0) ? probability : p_winner[lane];
    }
  }
#pragma omp simd
  for (int lane = 0; lane < kL; ++lane) {
    softmax.rest[lane] = tops[lane] + sum[lane];
    softmax.energy[lane] = energy[lane];
    softmax.p_winner[lane] = p_winner[lane];
  }
}

// Sums that are the same for all labels of a block, relative to the winner.
template <class T>
struct SharedSums {
  alignas(
      kBlockBytes) T shrink[kLanes<T>];  // exp(-gap): converts from relative to the runner-up to relative to the winner
  alignas(kBlockBytes) T gap[kLanes<T>];
  alignas(kBlockBytes) T rest[kLanes<T>];
  alignas(kBlockBytes) T energy[kLanes<T>];
  alignas(kBlockBytes) T log_growth[kLanes<T>];  // delta - gap
  alignas(kBlockBytes) T growth[kLanes<T>];      // exp of it

  LAPAL_HD void take(const Softmax<T>& softmax) {
#pragma omp simd
    for (int lane = 0; lane < kLanes<T>; ++lane) {
      const T distance = softmax.first[lane] - softmax.second[lane];
      const T factor = exp_nonpositive(-distance);
      gap[lane] = distance;
      shrink[lane] = factor;
      rest[lane] = factor * softmax.rest[lane];
      energy[lane] = factor * softmax.energy[lane];
      log_growth[lane] = softmax.delta[lane] - distance;
      growth[lane] = exp_or_zero(log_growth[lane]);
    }
  }

  // Sum of the exponentials of all classes but a losing class and the winner.
  LAPAL_HD T remaining(T weight, int lane) const {
    return rest[lane] + shrink[lane] * (T(1) - weight);
  }
  LAPAL_HD T remaining_energy(T weight, T shifted, T remaining, int lane) const {
    return (energy[lane] + (shrink[lane] * weight) * shifted) + gap[lane] * remaining;
  }
};

// Third pass: sums of p_k loss_k over labels [begin, end) without the winner, with exp(t + delta) as a product.
template <Loss kind, class T>
LAPAL_HD void add_labels(const T* p, int64_t begin, int64_t end, const T* shifted, const T* weights,
                         const SharedSums<T>& given, T* sums) {
  constexpr int kL = kLanes<T>;
  const SharedSums<T> shared = given;
  alignas(kBlockBytes) T sum[kL];
#pragma omp simd
  for (int lane = 0; lane < kL; ++lane) {
    sum[lane] = T(0);
  }
  int64_t k = begin;
  if constexpr (kind == Loss::expected_zero_one) {
    for (; k + 2 <= end; k += 2) {
      const T p0 = p[k], p1 = p[k + 1];
      const T* shifted0 = shifted + k * kL;
      const T* weights0 = weights + k * kL;
#pragma omp simd
      for (int lane = 0; lane < kL; ++lane) {
        const T w0 = weights0[lane], w1 = weights0[lane + kL];
        const auto f0 = shifted_error(shared.remaining(w0, lane), w0 * shared.growth[lane]);
        const auto f1 = shifted_error(shared.remaining(w1, lane), w1 * shared.growth[lane]);
        const T q0 = shifted0[lane] > T(0) ? T(0) : p0;
        const T q1 = shifted0[lane + kL] > T(0) ? T(0) : p1;
        sum[lane] += ((q0 * f0.numerator) * f1.denominator + (q1 * f1.numerator) * f0.denominator) /
                     (f0.denominator * f1.denominator);
      }
    }
  }
  for (; k < end; ++k) {
    const T probability = p[k];
#pragma omp simd
    for (int lane = 0; lane < kL; ++lane) {
      const T weight = weights[k * kL + lane], above = shifted[k * kL + lane];
      const T remaining = shared.remaining(weight, lane);
      const T factor = weight * shared.growth[lane];
      T loss;
      if constexpr (kind == Loss::expected_zero_one) {
        const auto fraction = shifted_error(remaining, factor);
        loss = fraction.numerator / fraction.denominator;
      } else {
        static_assert(kind == Loss::expected_cross_entropy, "a loss that has no formula for a shifted logit");
        loss = shifted_entropy(remaining, shared.remaining_energy(weight, above, remaining, lane), factor,
                               above + shared.log_growth[lane]);
      }
      sum[lane] += (above > T(0) ? T(0) : probability) * loss;
    }
  }
#pragma omp simd
  for (int lane = 0; lane < kL; ++lane) {
    sums[lane] = sum[lane];
  }
}

// The same with one exponential for each label, for a delta of any size.
template <Loss kind, class T>
LAPAL_HD void add_labels_of_any_shift(const T* logits, const T* p, int64_t begin, int64_t end, const T* shifted,
                                      const T* weights, const Softmax<T>& softmax, const SharedSums<T>& shared,
                                      T* sums) {
  constexpr int kL = kLanes<T>;
#pragma omp simd
  for (int lane = 0; lane < kL; ++lane) {
    sums[lane] = T(0);
  }
  for (int64_t k = begin; k < end; ++k) {
    const T probability = p[k];
#pragma omp simd
    for (int lane = 0; lane < kL; ++lane) {
      const T weight = weights[k * kL + lane], above = shifted[k * kL + lane];
      const T remaining = shared.remaining(weight, lane);
      const T remaining_energy = shared.remaining_energy(weight, above, remaining, lane);
      const T delta = softmax.delta[lane];
      const T d = ((logits[k * kL + lane] - delta * probability) + delta) - softmax.first[lane];
      sums[lane] += (above > T(0) ? T(0) : probability) * shifted_loss<kind>(remaining, remaining_energy, d);
    }
  }
}

}  // namespace lapal_ext
