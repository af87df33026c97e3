// The kernels' own exponential over an array, for test_exponential.py.
#include "likelihood.h"
#if !defined(__AVX__)  // compiled for the baseline, as the kernels are: what is wide brings its own instruction set
#include "cpu/wide_softmax.h"
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
LAPAL_WIDE static void wide_exponentials(const float* x, float* out, long count) {
  const lapal_ext::WideExp exp;
  for (long i = 0; i < count; i += 16) {
    const __mmask16 rest = count - i < 16 ? (1u << (count - i)) - 1u : 0xffffu;
    const __m512 values = _mm512_maskz_loadu_ps(rest, x + i);
    const __mmask16 counts = lapal_ext::wide_counts(__mmask16(-1), values);
    _mm512_mask_storeu_ps(out + i, rest, _mm512_maskz_mov_ps(counts, exp.in_range(values)));
  }
}

extern "C" bool exponentials_wide(const float* x, float* out, long count) {  // false where the processor has none
  if (!lapal_ext::has_wide_registers()) {
    return false;
  }
  wide_exponentials(x, out, count);
  return true;
}
#endif
