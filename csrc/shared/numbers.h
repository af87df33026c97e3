// What float and double are made of, for functions that the CPU and CUDA both compile.
//
// Every function in this folder takes the values of one lane: a SIMD lane on the CPU, a thread on a GPU. None of them
// branches or calls the math library, so a loop over lanes around any of them becomes vector code.
#pragma once

#include <cstdint>
#include <cstring>

// Always inlined: a kernel that is compiled for AVX-512 would otherwise call the baseline version of the function.
#if defined(__CUDACC__)
#define LAPAL_HD __host__ __device__ __forceinline__
#else
#define LAPAL_HD inline __attribute__((always_inline))
#endif

namespace lapal_ext {

namespace detail {

// The layout of a floating-point number, and the constants of its exponential and logarithm.
template <class T>
struct Number;

template <>
struct Number<float> {
  using Bits = uint32_t;
  static constexpr int kMantissa = 23;
  static constexpr Bits kHalfRoot = 0x3f3504f3;        // sqrt(1/2)
  static constexpr float kSmallestExponent = -87.33f;  // its exponential is the smallest normal number
  static constexpr float kSquareLift = 0x1p54f;        // its square times any number of classes is finite
  static constexpr float kRounder = 0x1.8p23f;
  static constexpr float kLog2High = 355.0f / 512.0f;  // few bits: n * kLog2High is exact
  static constexpr float kLog2Low = -2.12194440e-4f;
};

template <>
struct Number<double> {
  using Bits = uint64_t;
  static constexpr int kMantissa = 52;
  static constexpr Bits kHalfRoot = 0x3fe6a09e667f3bcd;
  static constexpr double kSmallestExponent = -708.39;
  static constexpr double kSquareLift = 0x1p450;
  static constexpr double kRounder = 0x1.8p52;
  static constexpr double kLog2High = 6.93147180369123816490e-01;
  static constexpr double kLog2Low = 1.90821492927058770002e-10;
};

template <class To, class From>
LAPAL_HD To bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From), "bit_cast needs two types of one size");
  To to;
  std::memcpy(&to, &from, sizeof(to));
  return to;
}

}  // namespace detail

LAPAL_HD float square_root(float x) {
  return __builtin_sqrtf(x);
}

LAPAL_HD double square_root(double x) {
  return __builtin_sqrt(x);
}

}  // namespace lapal_ext
