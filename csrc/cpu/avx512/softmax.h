// The softmax of blocks of logits in float32, in AVX-512 intrinsics for which compilers have no plain loop.
//
// Logits are in units of log 2, and close to relative to the largest of their lane: avx512_prepare_logits().
//
//   2^x = 2^floor(x) R (1 + r q(r)),  r = x - floor(32 x) / 32,  R = 2^(x - r - floor(x)), one of the 32 roots of two.
//
// One instruction computes r, one reads R from two registers, and one multiplies by the power of two, with zero or
// infinity out of range. The polynomial has two terms. This takes 8 instructions; exp_nonpositive() takes 15.
//
// The sums leave out the winner without a first pass that finds it: of the largest power so far and the next power, the
// smaller one is added to the sum. Ties need no special case, and there is no subtraction.
//
// The functions are not always_inline: a template without this target is between them and the kernel, and the compiler
// inlines them all the same.
#pragma once

#include "cpu/passes/softmax_block.h"
#include "cpu/simd/lanes.h"

#if LAPAL_HAS_CLONES
#include <immintrin.h>

namespace lapal_ext {

constexpr float kLog2e = 1.44269504088896340736f;
constexpr float kLog2 = 0.69314718055994530942f;
constexpr __mmask16 kAllLanes = 0xffff;  // masked intrinsics avoid a GCC 12 warning about its own headers

// If one of the two numbers is NaN, the result is the second.
LAPAL_AVX512 inline __m512 avx512_min(__m512 a, __m512 b) {
  return _mm512_maskz_min_ps(kAllLanes, a, b);
}

LAPAL_AVX512 inline __m512 avx512_max(__m512 a, __m512 b) {
  return _mm512_maskz_max_ps(kAllLanes, a, b);
}

// 2^(x + kLift) within 2 ulp.
template <int kLift>
class Avx512Exp2 {
 public:
  LAPAL_AVX512 Avx512Exp2() {
    const __m512 lift = _mm512_set1_ps(float(kLift));
    low_ = _mm512_maskz_scalef_ps(kAllLanes, _mm512_load_ps(kRoots), lift);
    high_ = _mm512_maskz_scalef_ps(kAllLanes, _mm512_load_ps(kRoots + kLanes<float>), lift);
  }

  // Zero instead of a subnormal number, which would be slow. NaN stays NaN.
  LAPAL_AVX512 __m512 operator()(__m512 x) const {
    constexpr int kDown = _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC;
    const __m512 r = _mm512_maskz_reduce_ps(kAllLanes, x, 5 << 4 | _MM_FROUND_TO_NEG_INF);
    // The lowest bits are floor(32 x).
    const __m512 steps = _mm512_maskz_add_round_ps(kAllLanes, x, _mm512_set1_ps(0x1.8p18f), kDown);
    const __m512 root = _mm512_permutex2var_ps(low_, _mm512_castps_si512(steps), high_);
    // (2^r - 1) / r, minimax: 0.54 ulp.
    const __m512 q = _mm512_fmadd_ps(r, _mm512_set1_ps(0.24265269f), _mm512_set1_ps(0.69312373f));
    const __m512 power = _mm512_fmadd_ps(q, _mm512_mul_ps(r, root), root);
    const __mmask16 normal = _mm512_cmp_ps_mask(x, _mm512_set1_ps(-126.0f - kLift), _CMP_NLT_UQ);
    return _mm512_maskz_scalef_ps(normal, power, x);
  }

 private:
  alignas(kBlockBytes) static constexpr float kRoots[32] = {  // 2^(j / 32)
      0x1.000000p0f, 0x1.059b0ep0f, 0x1.0b5586p0f, 0x1.11301ep0f, 0x1.172b84p0f, 0x1.1d4874p0f, 0x1.2387a6p0f,
      0x1.29e9e0p0f, 0x1.306fe0p0f, 0x1.371a74p0f, 0x1.3dea64p0f, 0x1.44e086p0f, 0x1.4bfdaep0f, 0x1.5342b6p0f,
      0x1.5ab07ep0f, 0x1.6247ecp0f, 0x1.6a09e6p0f, 0x1.71f75ep0f, 0x1.7a1148p0f, 0x1.82589ap0f, 0x1.8ace54p0f,
      0x1.93737cp0f, 0x1.9c4918p0f, 0x1.a5503cp0f, 0x1.ae89fap0f, 0x1.b7f770p0f, 0x1.c199bep0f, 0x1.cb720ep0f,
      0x1.d5818ep0f, 0x1.dfc974p0f, 0x1.ea4afap0f, 0x1.f50766p0f};

  __m512 low_, high_;
};

// The sums of a softmax over all classes but the winner.
//
// The largest logit may be up to kLift from zero. Then all powers down to 2^-126 of the winner's are normal numbers,
// and the powers, at most 2^(2 kLift), and their squares have sums below 2^128 for any number of classes.
template <Moment moment>
class Avx512LosingSums {
  static_assert(moment == Moment::none || moment == Moment::squares || moment == Moment::energy, "of a utility");
  static constexpr int kLift = moment == Moment::squares ? 24 : 48;

 public:
  using Exp2 = Avx512Exp2<kLift>;

  LAPAL_AVX512 Avx512LosingSums()
      : best_(_mm512_set1_ps(-0x1.fffffep127f)),  // not infinite, since zero times infinity is NaN
        largest_(_mm512_setzero_ps()),
        sum_(_mm512_setzero_ps()),
        second_(_mm512_setzero_ps()) {}

  // Adds one class, by its logit and its power. A NaN is added to the sums, and is never the largest.
  LAPAL_AVX512 void add(__m512 x, __m512 power) {
    const __m512 lower = avx512_min(largest_, power);
    if constexpr (moment == Moment::squares) {
      second_ = _mm512_fmadd_ps(lower, lower, second_);
    } else if constexpr (moment == Moment::energy) {
      second_ = _mm512_fmadd_ps(lower, avx512_min(x, best_), second_);
    }
    sum_ = _mm512_add_ps(sum_, lower);
    largest_ = avx512_max(power, largest_);
    best_ = avx512_max(x, best_);
  }

  // Largest logit of each lane.
  LAPAL_AVX512 __m512 best() const {
    return best_;
  }

  // Whether the largest logits are close enough to zero in all lanes.
  LAPAL_AVX512 bool in_range() const {
    return _mm512_cmp_ps_mask(_mm512_mul_ps(best_, best_), _mm512_set1_ps(float(kLift * kLift)), _CMP_NLE_UQ) == 0;
  }

  // One over the power of the winner.
  LAPAL_AVX512 __m512 inverse() const {
    return _mm512_div_ps(_mm512_set1_ps(1.0f), largest_);
  }

  // One over the sum of the powers of all classes.
  LAPAL_AVX512 __m512 weight() const {
    return _mm512_div_ps(_mm512_set1_ps(1.0f), _mm512_add_ps(largest_, sum_));
  }

  // The sum of the exponentials, relative to the winner.
  LAPAL_AVX512 __m512 rest(__m512 inverse) const {
    return _mm512_mul_ps(sum_, inverse);
  }

  // The moment: squares of the exponentials, or products with the shifted logits. With weight() in place of inverse(),
  // of the probabilities.
  LAPAL_AVX512 __m512 second(__m512 inverse) const {
    if constexpr (moment == Moment::squares) {
      return _mm512_mul_ps(_mm512_mul_ps(second_, inverse), inverse);
    } else if constexpr (moment == Moment::energy) {
      const __m512 energy = _mm512_fnmadd_ps(best_, sum_, second_);
      return _mm512_mul_ps(_mm512_mul_ps(energy, inverse), _mm512_set1_ps(kLog2));
    } else {
      return second_;
    }
  }

 private:
  __m512 best_, largest_, sum_, second_;
};

// Makes the logits of one block, [C][lane], relative to the largest of each lane, and multiplies them by `factor`. With
// kLog2e they are in units of log 2.
LAPAL_AVX512 inline void avx512_prepare_logits(int64_t n_classes, float factor, float* logits) {
  alignas(kBlockBytes) float best[kLanes<float>];
  find_largest(logits, n_classes, best);
  for (int64_t k = 0; k < n_classes; ++k) {
    const __m512 shifted = _mm512_sub_ps(_mm512_load_ps(logits + k * kLanes<float>), _mm512_load_ps(best));
    _mm512_store_ps(logits + k * kLanes<float>, _mm512_mul_ps(shifted, _mm512_set1_ps(factor)));
  }
}

}  // namespace lapal_ext
#endif
