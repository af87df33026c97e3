// Measures two rates that no torch call shows: multiply-adds in registers, and exponentials in the first-level cache.
// rates.py compiles this file as the kernels are compiled, and the same clones run.
#include "cpu/avx512/softmax.h"
#include "cpu/simd/lanes.h"

namespace {

using namespace lapal_ext;

constexpr int kChains = 12;  // independent sums, enough to hide the latency of two units

template <int kBytes>
LAPAL_HD float multiply_add_in_chains(long rounds) {
  using Vector = typename VectorOf<float, kBytes>::Type;
  Vector sums[kChains];
  LAPAL_UNROLL
  for (int k = 0; k < kChains; ++k) {
    sums[k] = Vector{} + static_cast<float>(k);  // chains that start alike would be computed once
  }
  Vector factor = Vector{} + 0.5f, term = Vector{} + 1.0f;
  for (long i = 0; i < rounds; ++i) {
    __asm__ volatile("" : "+m"(factor), "+m"(term));  // otherwise the compiler may replace the loop by a closed form
    const Vector near_factor = factor, near_term = term;
    LAPAL_UNROLL
    for (int k = 0; k < kChains; ++k) {
      sums[k] = sums[k] * near_factor + near_term;
    }
  }
  Vector total = {};
  LAPAL_UNROLL
  for (int k = 0; k < kChains; ++k) {
    total += sums[k];
  }
  return total[0];
}

LAPAL_AVX512 float avx512_multiply_add(long rounds) {
  return multiply_add_in_chains<64>(rounds);
}

LAPAL_NOT_AVX512 float portable_multiply_add(long rounds) {
  return multiply_add_in_chains<32>(2 * rounds);
}

LAPAL_NOT_AVX512 float exponential_kernel(const float* values, long size, long rounds) {
  float sum = 0.0f;
  for (long i = 0; i < rounds; ++i) {
#pragma omp simd reduction(+ : sum)
    for (long j = 0; j < size; ++j) {
      sum += exp_nonpositive(values[j]);
    }
    __asm__ volatile("" ::: "memory");
  }
  return sum;
}

#if LAPAL_HAS_CLONES
LAPAL_AVX512 float avx512_exponential_kernel(const float* values, long size, long rounds) {
  const Avx512Exp2<0> exp2;
  __m512 sum = _mm512_setzero_ps();
  for (long i = 0; i < rounds; ++i) {
    for (long j = 0; j < size; j += kLanes<float>) {
      sum = _mm512_add_ps(sum, exp2(_mm512_loadu_ps(values + j)));
    }
    __asm__ volatile("" ::: "memory");
  }
  return _mm512_reduce_add_ps(sum);
}
#endif

}  // namespace

extern "C" float multiply_add(long rounds) {  // rounds * kChains * 16 multiply-adds
  return has_avx512() ? avx512_multiply_add(rounds) : portable_multiply_add(rounds);
}

extern "C" float exponential(const float* values, long size, long rounds) {  // rounds * size, a multiple of the lanes
#if LAPAL_HAS_CLONES
  if (has_avx512()) {
    return avx512_exponential_kernel(values, size, rounds);
  }
#endif
  return exponential_kernel(values, size, rounds);
}
