// The kernels' own exponentials over an array, for test_exponential.py.
#include "shared/exponential.h"
#if !defined(__AVX__)  // for the baseline, as the kernels are compiled; wide code enables its own instruction set
#include "cpu/avx512/softmax.h"
#endif

template <class T>
static void exponentials(const T* x, T* out, long count) {
#pragma omp simd
  for (long i = 0; i < count; ++i) {
    out[i] = lapal_ext::exp_nonpositive(x[i]);
  }
}

extern "C" void exponentials_float(const float* x, float* out, long count) {
  exponentials(x, out, count);
}

extern "C" void exponentials_double(const double* x, double* out, long count) {
  exponentials(x, out, count);
}

#if defined(LAPAL_HAS_CLONES) && LAPAL_HAS_CLONES
LAPAL_AVX512 static void powers_of_two(const float* x, float* out, long count) {
  const lapal_ext::Avx512Exp2<0> exp2;
  for (long i = 0; i < count; i += 16) {
    const __mmask16 rest = count - i < 16 ? (1u << (count - i)) - 1u : 0xffffu;
    _mm512_mask_storeu_ps(out + i, rest, exp2(_mm512_maskz_loadu_ps(rest, x + i)));
  }
}

extern "C" bool exponentials_avx512(const float* x, float* out, long count) {  // false where the processor has none
  if (!lapal_ext::has_avx512()) {
    return false;
  }
  powers_of_two(x, out, count);
  return true;
}
#endif
