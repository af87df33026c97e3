// Two rates of this machine that no torch call shows: multiply-adds in registers, and exponentials in the first-level
// cache. roofline.py compiles this for the processor it runs on.
#include "likelihood.h"

typedef float Vector __attribute__((vector_size(64)));
constexpr int kChains = 12;  // independent, enough to hide the latency of two units

extern "C" float multiply_add(long rounds) {  // rounds * kChains * 16 multiply-adds
  Vector sums[kChains];
  for (int k = 0; k < kChains; ++k) {
    sums[k] = Vector{} + static_cast<float>(k);  // chains that start alike would be computed once
  }
  Vector factor = Vector{} + 0.5f, term = Vector{} + 1.0f;
  for (long i = 0; i < rounds; ++i) {
#pragma GCC unroll 12
    for (int k = 0; k < kChains; ++k) {
      sums[k] = sums[k] * factor + term;
    }
    __asm__ volatile("" : "+v"(factor), "+v"(term));  // or the loop has a closed form
  }
  Vector total = {};
  for (int k = 0; k < kChains; ++k) {
    total += sums[k];
  }
  return total[0];
}

extern "C" float exponential(const float* values, long size, long rounds) {  // rounds * size exponentials
  float sum = 0.0f;
  for (long i = 0; i < rounds; ++i) {
#pragma omp simd reduction(+ : sum)
    for (long j = 0; j < size; ++j) {
      sum += lapal_ext::exp_nonpositive(values[j]);
    }
    __asm__ volatile("" ::: "memory");
  }
  return sum;
}
