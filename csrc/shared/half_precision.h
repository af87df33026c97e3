// Half precision as a pool stores it: plain bits, which widen() converts exactly.
#pragma once

#include <cstdint>

#include "shared/numbers.h"

#if defined(__CUDACC__)
#include <cuda_fp16.h>
#endif

namespace lapal_ext {

struct Bfloat16Bits {
  uint16_t bits;
};
struct Float16Bits {
  uint16_t bits;
};

template <class T>
LAPAL_HD T widen(T value) {
  return value;
}

template <class T>
LAPAL_HD T widen(Bfloat16Bits value) {
  return T(detail::bit_cast<float>(uint32_t(value.bits) << 16));
}

// Exact for all values, including subnormal and infinite ones and NaN.
template <class T>
LAPAL_HD T widen(Float16Bits value) {
#if defined(__CUDA_ARCH__)
  return T(__half2float(__ushort_as_half(value.bits)));
#elif defined(__aarch64__) && defined(__ARM_FP16_FORMAT_IEEE)
  return T(detail::bit_cast<__fp16>(value.bits));  // every such processor has an instruction for it, of four numbers
#else
  const uint32_t magnitude = value.bits & 0x7fffu;
  const uint32_t sign = uint32_t(value.bits & 0x8000u) << 16;
  // The exponent is raised so far that infinity overflows, then lowered by a multiplication.
  const float normal = detail::bit_cast<float>((magnitude << 13) + 0x70000000u) * 0x1p-112f;
  // A subnormal is mantissa times 2^-24: the mantissa is added to the bits of 1/2, and 1/2 is subtracted.
  const float subnormal = detail::bit_cast<float>(magnitude | 0x3f000000u) - 0.5f;
  const float wide = magnitude < 0x0400u ? subnormal : normal;
  return T(detail::bit_cast<float>(detail::bit_cast<uint32_t>(wide) | sign));
#endif
}

}  // namespace lapal_ext
