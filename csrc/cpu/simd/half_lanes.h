// Half precision to float32 by the processor's own instructions: plain loops do not compile to that for float16, and
// with AVX-512 they compile to half registers.
//
// The functions are not always_inline: a template without their target is between them and the kernel, and the compiler
// inlines them all the same.
#pragma once

#include <type_traits>

#include "cpu/simd/lanes.h"
#include "shared/half_precision.h"

#if LAPAL_HAS_CLONES
#include <immintrin.h>
#endif

namespace lapal_ext {

// The bits of Float16Bits, for kernels that convert by F16C and run where has_f16c() is true.
struct F16cBits {
  uint16_t bits;
};

#if LAPAL_HAS_CLONES

#define LAPAL_F16C __attribute__((target("arch=x86-64-v3")))

inline bool has_f16c() {
  __builtin_cpu_init();
  return __builtin_cpu_supports("x86-64-v3");
}

template <class T>
LAPAL_F16C inline T widen(F16cBits value) {
  return T(_mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(value.bits))));
}

// kCount numbers, a multiple of eight, at any alignment.
template <int kCount>
LAPAL_F16C inline void f16c_widen(const F16cBits* from, float* to) {
  LAPAL_UNROLL
  for (int i = 0; i < kCount; i += 8) {
    _mm256_storeu_ps(to + i, _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from + i))));
  }
}

// As many numbers as a vector of 64 or 32 bytes has, at any alignment. The masked intrinsics avoid a GCC 12 warning
// about its own headers.
template <class S, class Vector>
LAPAL_AVX512 inline void avx512_widen(const S* from, Vector& to) {
  constexpr bool kIsFloat16 = std::is_same_v<S, Float16Bits>;
  static_assert(kIsFloat16 || std::is_same_v<S, Bfloat16Bits>, "half precision");
  if constexpr (sizeof(Vector) == sizeof(__m512)) {
    constexpr __mmask16 kAll = 0xffff;
    const __m256i stored = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
    if constexpr (kIsFloat16) {
      to = Vector(_mm512_maskz_cvtph_ps(kAll, stored));
    } else {
      to = Vector(_mm512_maskz_slli_epi32(kAll, _mm512_maskz_cvtepu16_epi32(kAll, stored), 16));
    }
  } else {
    static_assert(sizeof(Vector) == sizeof(__m256), "eight numbers");
    const __m128i stored = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
    if constexpr (kIsFloat16) {
      to = Vector(_mm256_cvtph_ps(stored));
    } else {
      to = Vector(_mm256_slli_epi32(_mm256_cvtepu16_epi32(stored), 16));
    }
  }
}

#else

template <int kCount>
void f16c_widen(const F16cBits* from, float* to);  // never called: no kernel reads F16cBits

#endif

}  // namespace lapal_ext
