// Measures three rates that no torch call shows: multiply-adds in registers, exponentials in the first-level cache, and
// reading memory by one or several streams of addresses.
// rates.py compiles this file as the kernels are compiled, and the same clones run.
#include <cstring>
#include <type_traits>

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

constexpr int kTurn = 192;             // numbers that a stream reads before the next stream has its turn
constexpr long kPiece = 640L * kTurn;  // numbers that the streams share, half a megabyte
constexpr int kNumbers = 64 / sizeof(float);

// A sum over data, kStreams parts of each piece in turn. Numbers after the last whole piece are not read.
template <int kStreams>
LAPAL_HD float sum_in_streams(const float* data, long size) {
  using Vector = VectorOf<float, 64>::Type;
  Vector sums[4] = {};
  for (const float* piece = data; piece + kPiece <= data + size; piece += kPiece) {
    for (long turn = 0; turn < kPiece / kStreams; turn += kTurn) {
      LAPAL_UNROLL
      for (int stream = 0; stream < kStreams; ++stream) {
        const float* from = piece + stream * (kPiece / kStreams) + turn;
        LAPAL_UNROLL
        for (int i = 0; i < kTurn; i += kNumbers) {
          Vector values;
          std::memcpy(&values, from + i, sizeof(values));
          sums[i / kNumbers % 4] += values;
        }
      }
    }
  }
  const Vector total = (sums[0] + sums[1]) + (sums[2] + sums[3]);
  return total[0];
}

template <class Body>
LAPAL_HD float with_streams(int n_streams, Body&& body) {
  switch (n_streams) {
    case 1:
      return body(std::integral_constant<int, 1>{});
    case 2:
      return body(std::integral_constant<int, 2>{});
    case 4:
      return body(std::integral_constant<int, 4>{});
    default:
      return body(std::integral_constant<int, 8>{});
  }
}

#define LAPAL_READ_KERNEL(clones, name)                                               \
  clones float name(const float* data, long size, int n_streams) {                    \
    return with_streams(n_streams, [&](auto streams) __attribute__((always_inline)) { \
      return sum_in_streams<decltype(streams)::value>(data, size);                    \
    });                                                                               \
  }
LAPAL_READ_KERNEL(LAPAL_AVX512, avx512_read)
LAPAL_READ_KERNEL(LAPAL_NOT_AVX512, portable_read)
#undef LAPAL_READ_KERNEL

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

extern "C" float read_memory(const float* data, long size, int n_streams) {  // 1, 2, 4 or 8 streams
  return has_avx512() ? avx512_read(data, size, n_streams) : portable_read(data, size, n_streams);
}

extern "C" float exponential(const float* values, long size, long rounds) {  // rounds * size, a multiple of the lanes
#if LAPAL_HAS_CLONES
  if (has_avx512()) {
    return avx512_exponential_kernel(values, size, rounds);
  }
#endif
  return exponential_kernel(values, size, rounds);
}
