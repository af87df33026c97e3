// The sums of a softmax in float32, in the instructions of AVX-512: what the compiler does not find in plain loops.
//
//   exp(x) = T (1 + r + r^2 / 2 + r^3 / 6),  T = 2^(n / 16),  r = x - n log(2) / 16,  n = round(16 x / log 2).
//
// The sixteen roots of two lie in one register that a permutation looks up, which leaves a polynomial of three terms
// for the five of exp_in_range(): 11 instructions instead of 13, and a chain of 7 instead of 10. Masks stand for the
// winner and for what is too small, where the loops of simd.h blend: a class costs 16 instructions instead of 21.
//
// Not always_inline, since templates without this target stand between a kernel and these.
#pragma once

#include "cpu/simd.h"

#if LAPAL_HAS_CLONES
#include <immintrin.h>

namespace lapal_ext {

struct WideExp {
  // Bits of 2^(j / 16), less j at the place where n, shifted into the exponent, leaves its four lowest bits.
  alignas(kBlockBytes) static constexpr int32_t kRoots[16] = {
      0x3f800000, 0x3f7daac3, 0x3f7b95c2, 0x3f79c3d3, 0x3f7837f0, 0x3f76f532, 0x3f75fed7, 0x3f75583f,
      0x3f7504f3, 0x3f7508a4, 0x3f75672a, 0x3f76248c, 0x3f7744fd, 0x3f78ccdf, 0x3f7ac0c7, 0x3f7d257d};

  __m512 roots;

  LAPAL_WIDE WideExp() : roots(_mm512_castsi512_ps(_mm512_load_si512(kRoots))) {}

  // Within 2 ulp where x is not below the smallest exponent and x <= 0; NaN stays NaN.
  LAPAL_WIDE __m512 in_range(__m512 x) const {
    const __m512 rounder = _mm512_set1_ps(detail::Number<float>::kRounder);
    const __m512 rounded = _mm512_fmadd_ps(x, _mm512_set1_ps(16.0f * 1.44269504088896340736f), rounder);
    const __m512 n = _mm512_sub_ps(rounded, rounder);
    __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0x1.62e430p-5f), x);
    r = _mm512_fmadd_ps(n, _mm512_set1_ps(0x1.05c610p-33f), r);
    const __m512i bits = _mm512_castps_si512(rounded);
    const __m512i root = _mm512_castps_si512(_mm512_permutexvar_ps(bits, roots));
    const __m512 power = _mm512_castsi512_ps(_mm512_add_epi32(root, _mm512_slli_epi32(bits, 19)));
    __m512 sum = _mm512_fmadd_ps(r, _mm512_set1_ps(1.0f / 6.0f), _mm512_set1_ps(0.5f));
    sum = _mm512_fmadd_ps(sum, r, _mm512_set1_ps(1.0f));
    return _mm512_fmadd_ps(sum, _mm512_mul_ps(r, power), power);
  }
};

// Lanes whose class loses: NaN too, so that it is seen.
LAPAL_WIDE inline __mmask16 wide_loses(__m512 shifted) {
  return _mm512_cmp_ps_mask(shifted, _mm512_setzero_ps(), _CMP_NGE_UQ);
}

// Of these lanes, those whose exponential is a normal number, or NaN.
LAPAL_WIDE inline __mmask16 wide_counts(__mmask16 lanes, __m512 shifted) {
  const __m512 smallest = _mm512_set1_ps(detail::Number<float>::kSmallestExponent);
  return _mm512_mask_cmp_ps_mask(lanes, shifted, smallest, _CMP_NLT_UQ);
}

// sum_losers() of simd.h, for the moments that a loss needs.
template <Moment moment, bool kLinked>
LAPAL_WIDE inline void wide_sum_losers(const float* logits, int64_t n_classes, const float* largest, const float* link,
                                       float* rest, float* moments) {
  static_assert(moment == Moment::none || moment == Moment::squares || moment == Moment::energy, "of a utility");
  const WideExp exp;
  const __m512 best = _mm512_load_ps(largest), factor = kLinked ? _mm512_load_ps(link) : _mm512_setzero_ps();
  __m512 sum = _mm512_setzero_ps(), second = _mm512_setzero_ps();
  __m512 ties = _mm512_set1_ps(float(n_classes - 1));  // as large as the largest, beyond the first
  for (int64_t k = 0; k < n_classes; ++k) {
    __m512 shifted = _mm512_sub_ps(_mm512_load_ps(logits + k * kLanes<float>), best);
    if (kLinked) {
      shifted = _mm512_mul_ps(shifted, factor);
    }
    const __mmask16 loses = wide_loses(shifted), counts = wide_counts(loses, shifted);
    const __m512 other = exp.in_range(shifted);
    sum = _mm512_mask_add_ps(sum, counts, sum, other);
    ties = _mm512_mask_sub_ps(ties, loses, ties, _mm512_set1_ps(1.0f));
    if constexpr (moment != Moment::none) {
      second = _mm512_mask3_fmadd_ps(other, moment == Moment::squares ? other : shifted, second, counts);
    }
  }
  _mm512_store_ps(rest, _mm512_add_ps(sum, ties));
  _mm512_store_ps(moments, moment == Moment::squares ? _mm512_add_ps(second, ties) : second);
}

// take_exponentials() of mc_predictive.cpp.
LAPAL_WIDE inline void wide_take_exponentials(float* drawn, int64_t n_classes, const float* largest, float* rest,
                                              float* energy) {
  const WideExp exp;
  const __m512 best = _mm512_load_ps(largest);
  __m512 sum = _mm512_setzero_ps(), products = _mm512_setzero_ps();
  __m512 ties = _mm512_set1_ps(float(n_classes - 1));
  for (int64_t k = 0; k < n_classes; ++k) {
    float* row = drawn + k * kLanes<float>;
    const __m512 shifted = _mm512_sub_ps(_mm512_load_ps(row), best);
    const __mmask16 loses = wide_loses(shifted);
    const __m512 term = _mm512_maskz_mov_ps(wide_counts(__mmask16(-1), shifted), exp.in_range(shifted));
    _mm512_store_ps(row, term);
    sum = _mm512_mask_add_ps(sum, loses, sum, term);
    ties = _mm512_mask_sub_ps(ties, loses, ties, _mm512_set1_ps(1.0f));
    products = _mm512_fmadd_ps(term, shifted, products);
  }
  _mm512_store_ps(rest, _mm512_add_ps(sum, ties));
  _mm512_store_ps(energy, products);
}

}  // namespace lapal_ext
#endif
