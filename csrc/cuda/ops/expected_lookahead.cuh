// Expected loss after one more label, for every candidate, over all labels that it may have.
//
//   out_n = sum over e and k of p_nk loss(softmax(z_e + delta (e_k - p_n))),  delta = a_n c_ne.
//
// Shapes: logits z [C, E], columns c [N, E], step lengths a [N], probabilities p [N, C] -> float64 [N]. Logits, columns
// and step lengths have any strides; contiguous points are fastest.
//
// The passes are those of cpu/ops/expected_lookahead.cpp: find the two largest of t = z - delta p; compute the weights
// exp(t - second) and their sums; for each label, replace one term of the sums (shared/single_logit_shift.h). If delta
// is too large for exp(delta) as a factor, each label of the point takes an exponential of its own.
//
// A block takes one candidate and a part of the points (evaluation_tiles.cuh); a thread takes one point at a time. p
// and the weights [C][thread] are in shared memory; t is computed again in each pass. If there are so many classes that
// a multiprocessor would hold few blocks, p is read in place and the weights are computed again.
//
// Limit: arithmetic. Per (candidate, point) C + 2 exponentials, or 2 C + 1 if weights are not kept. Per class about 30
// operations and half a division for the error, 60 and one division for the entropy. z is read three times, twice from
// the first-level cache; a column is read once.
#pragma once

#include "cuda/shared/evaluation_tiles.cuh"
#include "shared/single_logit_shift.h"

namespace lapal_ext {

constexpr int64_t kCandidatePoints =
    2 * kPointBlock;             // of a part at least, so that each sum over a block has two rounds
constexpr int kLabelChunk = 32;  // losses that are added before the sum is converted to float64; even

template <class T>
struct Candidates {
  const T* logits;  // [C, E]
  int64_t class_stride, logit_stride;
  const T* columns;  // [N, E]
  int64_t row_stride, column_stride;
  const T* step_lengths;  // [N]
  int64_t length_stride;
  const T* probabilities;  // [N, C], contiguous
  int64_t n_candidates;
  int n_classes;
  EvaluationParts parts;
  double* partial_sums;  // [parts, N]
};

// All labels of a candidate at one point.
template <bool kKept, class T>
struct Labels {
  const T* logits;  // of the point
  int64_t class_stride;
  const T* p;  // [C]
  int n_classes;
  T delta;
  T* weights;                                                     // one in kPointBlock numbers, if they are kept
  T first = -T(__builtin_inff()), second = -T(__builtin_inff());  // the largest of t, and the second largest
  T rest = T(0);                                                  // sum of the weights of all but these two
  T energy = T(0);                                                // sum of weight times distance of all but the largest
  T p_winner = T(0);                                              // probability of the winner, zero in a tie

  __device__ __forceinline__ T t(int k) const {
    return logits[k * class_stride] - delta * p[k];
  }

  __device__ __forceinline__ void find_top_two() {
    for (int k = 0; k < n_classes; ++k) {
      const T value = t(k);
      const T smaller = value < first ? value : first;
      second = smaller > second ? smaller : second;
      first = value > first ? value : first;
    }
  }

  static __device__ __forceinline__ T weight_of(T above) {
    return exp_nonpositive(above > T(0) ? T(0) : above);
  }

  __device__ __forceinline__ T weight(int k, T above) const {
    if constexpr (kKept) {
      return weights[k * kPointBlock];
    } else {
      return weight_of(above);
    }
  }

  __device__ __forceinline__ void sum_weights() {
    T sum = T(0), tops = T(-2);  // number of classes not below the runner-up, less two
    for (int k = 0; k < n_classes; ++k) {
      const T above = t(k) - second;
      const T weight = weight_of(above);
      if constexpr (kKept) {
        weights[k * kPointBlock] = weight;
      }
      sum += above >= T(0) ? T(0) : weight;
      tops += above >= T(0) ? T(1) : T(0);
      energy -= above > T(0) ? T(0) : weight * above;
      p_winner = above > T(0) ? p[k] : p_winner;
    }
    rest = tops + sum;
  }
};

// Sums that are the same for all labels, relative to the winner; see SharedSums in cpu/passes/hypothetical_labels.h.
template <class T>
struct SharedSums {
  T shrink, gap, rest, energy, log_growth, growth;

  template <bool kKept>
  __device__ __forceinline__ explicit SharedSums(const Labels<kKept, T>& labels)
      : shrink(exp_nonpositive(labels.second - labels.first)),
        gap(labels.first - labels.second),
        rest(shrink * labels.rest),
        energy(shrink * labels.energy),
        log_growth(labels.delta - gap),
        growth(exp_or_zero(log_growth)) {}

  // Sum of the exponentials of all classes but a losing class and the winner.
  __device__ __forceinline__ T sum(T weight) const {
    return rest + shrink * (T(1) - weight);
  }
  __device__ __forceinline__ T energy_sum(T weight, T above, T sum) const {
    return (energy + (shrink * weight) * above) + gap * sum;
  }
};

// Sum of p_k loss_k over labels [begin, end) without the winner, with exp(t + delta) as a product.
template <Loss kind, bool kKept, class T>
__device__ __forceinline__ T add_labels(const Labels<kKept, T>& labels, const SharedSums<T>& shared, int begin,
                                        int end) {
  T sum = T(0);
  int k = begin;
  if constexpr (kind == Loss::expected_zero_one) {
    for (; k + 2 <= end; k += 2) {  // one division for two labels
      const T above0 = labels.t(k) - labels.second, above1 = labels.t(k + 1) - labels.second;
      const T w0 = labels.weight(k, above0), w1 = labels.weight(k + 1, above1);
      const Fraction<T> f0 = shifted_error(shared.sum(w0), w0 * shared.growth);
      const Fraction<T> f1 = shifted_error(shared.sum(w1), w1 * shared.growth);
      const T q0 = above0 > T(0) ? T(0) : labels.p[k], q1 = above1 > T(0) ? T(0) : labels.p[k + 1];
      sum += ((q0 * f0.numerator) * f1.denominator + (q1 * f1.numerator) * f0.denominator) /
             (f0.denominator * f1.denominator);
    }
  }
  for (; k < end; ++k) {
    const T above = labels.t(k) - labels.second;
    const T weight = labels.weight(k, above);
    const T remaining = shared.sum(weight), factor = weight * shared.growth;
    T loss;
    if constexpr (kind == Loss::expected_zero_one) {
      const Fraction<T> fraction = shifted_error(remaining, factor);
      loss = fraction.numerator / fraction.denominator;
    } else {
      static_assert(kind == Loss::expected_cross_entropy, "a loss that has no formula for a shifted logit");
      loss = shifted_entropy(remaining, shared.energy_sum(weight, above, remaining), factor, above + shared.log_growth);
    }
    sum += (above > T(0) ? T(0) : labels.p[k]) * loss;
  }
  return sum;
}

// The same with one exponential for each label, for a delta of any size.
template <Loss kind, bool kKept, class T>
__device__ __forceinline__ T add_labels_of_any_shift(const Labels<kKept, T>& labels, const SharedSums<T>& shared,
                                                     int begin, int end) {
  T sum = T(0);
  for (int k = begin; k < end; ++k) {
    const T above = labels.t(k) - labels.second;
    const T weight = labels.weight(k, above);
    const T remaining = shared.sum(weight);
    const T d = (labels.t(k) + labels.delta) - labels.first;
    sum += (above > T(0) ? T(0) : labels.p[k]) *
           shifted_loss<kind>(remaining, shared.energy_sum(weight, above, remaining), d);
  }
  return sum;
}

// Expected loss of one point.
template <Loss kind, bool kKept, class T>
__device__ __forceinline__ double expected_loss(Labels<kKept, T> labels) {
  labels.find_top_two();
  labels.sum_weights();
  const SharedSums<T> shared(labels);
  const bool moves_far = labels.delta > T(kMaxFactorShift);
  double total = 0.0;
  for (int begin = 0; begin < labels.n_classes; begin += kLabelChunk) {
    const int end = begin + kLabelChunk < labels.n_classes ? begin + kLabelChunk : labels.n_classes;
    total += double(moves_far ? add_labels_of_any_shift<kind>(labels, shared, begin, end)
                              : add_labels<kind>(labels, shared, begin, end));
  }
  const T d = shared.gap + labels.delta;
  return total + double(labels.p_winner * shifted_loss<kind>(labels.rest, labels.energy, d));
}

// Pairs (part, candidate). Neighbouring blocks have the same part, whose logits are in cache.
template <Loss kind, bool kKept, class T>
__global__ void __launch_bounds__(kPointBlock, 4) expected_lookahead_kernel(Candidates<T> call) {
  LAPAL_DYN_SHARED(T, memory);
  LAPAL_SHARED(double, scratch, kPointWarps);
  const int n_classes = call.n_classes, thread = int(threadIdx.x);
  const int64_t n_pairs = call.parts.n_parts * call.n_candidates;
  for (int64_t pair = blockIdx.x; pair < n_pairs; pair += gridDim.x) {
    const int64_t part = pair / call.n_candidates, n = pair % call.n_candidates;
    const T* p = call.probabilities + n * n_classes;
    if constexpr (kKept) {
      for (int k = thread; k < n_classes; k += kPointBlock) {
        memory[k] = p[k];
      }
      __syncthreads();
      p = memory;
    }
    const T length = call.step_lengths[n * call.length_stride];
    const int64_t end = call.parts.end(part);
    double sum = 0.0;
    for (int64_t e = call.parts.start(part) + thread; e < end; e += kPointBlock) {
      const T delta = length * call.columns[n * call.row_stride + e * call.column_stride];
      sum += expected_loss<kind>(Labels<kKept, T>{call.logits + e * call.logit_stride, call.class_stride, p, n_classes,
                                                  delta, memory + n_classes + thread});
    }
    // Its barriers also protect shared memory: the next candidate is written after all threads have read this one.
    sum = block_reduce<kPointBlock>(sum, 0.0, Sum(), scratch);
    if (thread == 0) {
      call.partial_sums[pair] = sum;
    }
  }
}

}  // namespace lapal_ext
