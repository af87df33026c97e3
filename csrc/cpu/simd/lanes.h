// SIMD without a library: the compiler turns plain loops over lanes into vector code, once for each instruction set.
//
// A block has one AVX-512 register per value and is class-major: element [k][lane]. Loops over the lanes carry
// `#pragma omp simd`. Their trip count is a constant, so clones with shorter registers unroll them.
//
// A clone covers the function that carries LAPAL_CLONES and everything that is inlined into it. So helpers are
// LAPAL_HD, which is always inlined, and templates are called from plain functions, one for each dtype.
#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "cpu/simd/clones.h"
#include "shared/numbers.h"

// Unrolls a loop of constant length completely, so that its array stays in registers.
#if defined(__clang__)
#define LAPAL_UNROLL _Pragma("clang loop unroll(full)")
#else
#define LAPAL_UNROLL _Pragma("GCC unroll 16")
#endif

// Whether compiler vectors can be shuffled.
#if defined(__has_builtin)
#if __has_builtin(__builtin_shufflevector)
#define LAPAL_HAS_SHUFFLE 1
#endif
#endif
#ifndef LAPAL_HAS_SHUFFLE
#define LAPAL_HAS_SHUFFLE 0
#endif

namespace lapal_ext {

constexpr int kBlockBytes = 64;  // one AVX-512 register, one cache line

template <class T>
constexpr int kLanes = kBlockBytes / int(sizeof(T));

// A compiler vector.
template <class T, int kBytes>
struct VectorOf {
  typedef T Type __attribute__((vector_size(kBytes)));
};

// An integer of the size of T, so that both have the same number of lanes.
template <class T>
using LaneIndex = std::conditional_t<sizeof(T) == 4, int32_t, int64_t>;

constexpr int64_t round_up(int64_t value, int64_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

// Whether this processor has AVX-512: 32 vector registers of 64 bytes.
inline bool has_avx512() {
#if LAPAL_HAS_CLONES
  __builtin_cpu_init();
  return __builtin_cpu_supports("x86-64-v4");
#else
  return false;
#endif
}

template <class T>
LAPAL_HD void fill_lanes(T value, T* lanes) {
#pragma omp simd
  for (int lane = 0; lane < kLanes<T>; ++lane) {
    lanes[lane] = value;
  }
}

// The largest of kCount lanes. It compares pairs first, to shorten the chain of dependent comparisons.
template <int kCount, class T>
LAPAL_HD T largest_lane(const T* lanes) {
  if constexpr (kCount == 1) {
    return lanes[0];
  } else {
    const T left = largest_lane<kCount / 2>(lanes);
    const T right = largest_lane<kCount / 2>(lanes + kCount / 2);
    return left > right ? left : right;
  }
}

// The largest of `size` values in a row, at least one. A NaN may be skipped. Every lane keeps a maximum of its own: a
// loop over one maximum is scalar code for Clang, which must respect NaN.
template <class T>
LAPAL_HD T largest_in_row(const T* values, int64_t size) {
  constexpr int kL = kLanes<T>;
  alignas(kBlockBytes) T best[kL];
  fill_lanes(T(-__builtin_inff()), best);
  int64_t k = 0;
  for (; k + kL <= size; k += kL) {
#pragma omp simd
    for (int lane = 0; lane < kL; ++lane) {
      best[lane] = values[k + lane] > best[lane] ? values[k + lane] : best[lane];
    }
  }
  T largest = largest_lane<kL>(best);
  for (; k < size; ++k) {
    largest = values[k] > largest ? values[k] : largest;
  }
  return largest;
}

}  // namespace lapal_ext
