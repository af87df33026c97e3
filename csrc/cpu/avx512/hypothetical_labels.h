// cpu/passes/hypothetical_labels.h for float32 with AVX-512.
//
// For the error, one pass finds the two largest and computes the exponentials, as powers of two (cpu/avx512/softmax.h)
// relative to the largest logit before the label. The portable passes are used if a candidate moves the largest logit
// outside of the range of these powers, or if delta is too large for exp(delta) as a factor. The entropy needs
// distances, and uses the portable passes except for sum_weights().
#pragma once

#include "cpu/avx512/softmax.h"
#include "cpu/passes/hypothetical_labels.h"

#if LAPAL_HAS_CLONES

namespace lapal_ext {

constexpr int kLabelLift = 48;  // how far the largest logit may move, in units of log 2

// sum_weights() in 17 instructions per class instead of 24.
LAPAL_AVX512 inline void avx512_sum_weights(const float* p, int64_t n_classes, float* shifted, float* weights,
                                            Softmax<float>& softmax) {
  const Avx512Exp2<0> exp2;
  const __m512 second = _mm512_load_ps(softmax.second), zero = _mm512_setzero_ps(), one = _mm512_set1_ps(1.0f);
  __m512 sum = zero, energy = zero, p_winner = zero;
  __m512 ties = _mm512_set1_ps(float(n_classes - 2));  // becomes the number of ties with the runner-up
  for (int64_t k = 0; k < n_classes; ++k) {
    const int64_t row = k * kLanes<float>;
    const __m512 above = _mm512_sub_ps(_mm512_load_ps(shifted + row), second);
    const __m512 below = avx512_min(zero, above);
    const __m512 weight = exp2(_mm512_mul_ps(below, _mm512_set1_ps(kLog2e)));
    _mm512_store_ps(shifted + row, above);
    _mm512_store_ps(weights + row, weight);
    const __mmask16 loses = _mm512_cmp_ps_mask(above, zero, _CMP_NGE_UQ);  // a NaN is in the sum
    sum = _mm512_mask_add_ps(sum, loses, sum, weight);
    ties = _mm512_mask_sub_ps(ties, loses, ties, one);
    energy = _mm512_fnmadd_ps(weight, below, energy);
    p_winner = _mm512_mask_mov_ps(p_winner, _mm512_cmp_ps_mask(above, zero, _CMP_GT_OQ), _mm512_set1_ps(p[k]));
  }
  _mm512_store_ps(softmax.rest, _mm512_add_ps(ties, sum));
  _mm512_store_ps(softmax.energy, energy);
  _mm512_store_ps(softmax.p_winner, p_winner);
}

// Powers of t = z - delta p in one block, and their sum without the two largest.
struct Avx512TopTwo {
  __m512 first, second, sum;
};

LAPAL_AVX512 inline Avx512TopTwo avx512_take_powers(const float* logits, const float* p, int64_t n_classes,
                                                    __m512 delta, float* powers) {
  const Avx512Exp2<kLabelLift> exp2;
  __m512 first = _mm512_setzero_ps(), second = first, sum = first;
  for (int64_t k = 0; k < n_classes; ++k) {
    const __m512 z = _mm512_load_ps(logits + k * kLanes<float>);
    const __m512 t = _mm512_fnmadd_ps(delta, _mm512_set1_ps(p[k]), z);
    const __m512 power = exp2(_mm512_mul_ps(t, _mm512_set1_ps(kLog2e)));
    _mm512_store_ps(powers + k * kLanes<float>, power);
    // A NaN is the lower one in both comparisons, so it is in the sum.
    const __m512 lower = avx512_min(first, power);
    first = avx512_max(power, first);
    sum = _mm512_add_ps(sum, avx512_min(second, lower));
    second = avx512_max(lower, second);
  }
  return {first, second, sum};
}

// Whether the powers that matter, and their products, are normal numbers in all lanes.
LAPAL_AVX512 inline bool avx512_in_range(const Avx512TopTwo& tops, __m512 delta) {
  const __m512 farthest = _mm512_set1_ps(float(kMaxFactorShift * kMaxFactorShift));
  __mmask16 near = _mm512_cmp_ps_mask(tops.first, _mm512_set1_ps(1.0f), _CMP_GE_OQ);
  near = _mm512_mask_cmp_ps_mask(near, tops.first, _mm512_set1_ps(0x1p96f), _CMP_LE_OQ);  // 2^(2 kLabelLift)
  near = _mm512_mask_cmp_ps_mask(near, tops.second, _mm512_set1_ps(0x1p-96f), _CMP_GE_OQ);
  near = _mm512_mask_cmp_ps_mask(near, _mm512_mul_ps(delta, delta), farthest, _CMP_LE_OQ);
  return near == kAllLanes;
}

// Sums that are the same for all labels of a block.
struct Avx512SharedSums {
  __m512 second;   // power of the runner-up
  __m512 inverse;  // of the winner's power
  __m512 rest;     // sum of all exponentials but those of the two, relative to the winner
  __m512 growth;   // from a power to exp(t + delta), relative to the winner
};

struct Avx512Fraction {
  __m512 numerator, denominator;
};

// shifted_error() of label k, times its probability. For the winner it is zero, and its probability is stored.
LAPAL_AVX512 inline Avx512Fraction avx512_shifted_error(const Avx512SharedSums& shared, const float* powers,
                                                        const float* p, int64_t k, __m512& p_winner) {
  const __m512 one = _mm512_set1_ps(1.0f), probability = _mm512_set1_ps(p[k]);
  const __m512 power = _mm512_load_ps(powers + k * kLanes<float>);
  const __mmask16 loses = _mm512_cmp_ps_mask(power, shared.second, _CMP_NGT_UQ);
  // Zero for the winner: a negative number could make the denominator zero.
  const __m512 others = _mm512_maskz_sub_ps(loses, shared.second, power);
  const __m512 remaining = _mm512_fmadd_ps(others, shared.inverse, shared.rest);
  const __m512 factor = _mm512_mul_ps(power, shared.growth);
  p_winner = _mm512_mask_mov_ps(probability, loses, p_winner);
  return {_mm512_maskz_mul_ps(loses, _mm512_add_ps(remaining, avx512_min(factor, one)), probability),
          _mm512_add_ps(_mm512_add_ps(one, remaining), factor)};
}

LAPAL_AVX512 inline void avx512_add(__m512 values, double* totals) {
  alignas(kBlockBytes) float lanes[kLanes<float>];
  _mm512_store_ps(lanes, values);
#pragma omp simd
  for (int lane = 0; lane < kLanes<float>; ++lane) {
    totals[lane] += double(lanes[lane]);
  }
}

// Adds the expected error of each point of a block to `totals`. Returns false, and adds nothing, if the portable passes
// are needed.
LAPAL_AVX512 inline bool avx512_add_expected_error(const float* logits, const float* p, int64_t n_classes,
                                                   int64_t chunk, const float* deltas, float* powers, double* totals) {
  const __m512 one = _mm512_set1_ps(1.0f), delta = _mm512_load_ps(deltas);
  const Avx512TopTwo tops = avx512_take_powers(logits, p, n_classes, delta, powers);
  if (!avx512_in_range(tops, delta)) {
    return false;
  }
  const __m512 shift = Avx512Exp2<0>()(_mm512_mul_ps(delta, _mm512_set1_ps(kLog2e)));
  const __m512 inverse = _mm512_div_ps(one, tops.first);
  const Avx512SharedSums shared{tops.second, inverse, _mm512_mul_ps(tops.sum, inverse), _mm512_mul_ps(shift, inverse)};
  __m512 p_winner = _mm512_setzero_ps();
  for (int64_t begin = 0; begin < n_classes; begin += chunk) {
    const int64_t end = begin + chunk < n_classes ? begin + chunk : n_classes;
    __m512 sum = _mm512_setzero_ps();
    int64_t k = begin;
    for (; k + 2 <= end; k += 2) {  // one division for two labels
      const Avx512Fraction a = avx512_shifted_error(shared, powers, p, k, p_winner);
      const Avx512Fraction b = avx512_shifted_error(shared, powers, p, k + 1, p_winner);
      const __m512 numerator = _mm512_fmadd_ps(a.numerator, b.denominator, _mm512_mul_ps(b.numerator, a.denominator));
      sum = _mm512_add_ps(sum, _mm512_div_ps(numerator, _mm512_mul_ps(a.denominator, b.denominator)));
    }
    if (k < end) {
      const Avx512Fraction a = avx512_shifted_error(shared, powers, p, k, p_winner);
      sum = _mm512_add_ps(sum, _mm512_div_ps(a.numerator, a.denominator));
    }
    avx512_add(sum, totals);
  }
  // The label of the winner: without it, the runner-up has the largest logit.
  const __m512 lead = _mm512_div_ps(one, tops.second), remaining = _mm512_mul_ps(tops.sum, lead);
  const __m512 factor = _mm512_mul_ps(_mm512_mul_ps(tops.first, lead), shift);
  const __m512 numerator = _mm512_add_ps(remaining, avx512_min(factor, one));
  const __m512 denominator = _mm512_add_ps(_mm512_add_ps(one, remaining), factor);
  avx512_add(_mm512_mul_ps(p_winner, _mm512_div_ps(numerator, denominator)), totals);
  return true;
}

}  // namespace lapal_ext
#endif
