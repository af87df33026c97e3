// The kernels' own exponential over an array, for test_exponential.py.
#include "likelihood.h"

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
