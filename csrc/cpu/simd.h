// SIMD without a library: plain loops over lanes that the compiler turns into vector code, three times over.
//
// A block holds one vector register of AVX-512 per value, class-major: element [k][lane]. Loops over the
// lanes carry
// `#pragma omp simd`; their trip count is a constant, so the narrower clones unroll them.
//
// The compiler clones only the function that carries LAPAL_CLONES, and only what is inlined into it: helpers
// are LAPAL_HD (always inlined), and templates are called from plain functions, one per dtype.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <new>
#include <type_traits>

#include "clones.h"
#include "likelihood.h"

// Before a loop of constant length that must unroll completely, so that its array stays in registers.
#if defined(__clang__)
#define LAPAL_UNROLL _Pragma("clang loop unroll(full)")
#else
#define LAPAL_UNROLL _Pragma("GCC unroll 16")
#endif

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

// An integer as wide as T, so that both fill a register with the same number of lanes.
template <class T>
using LaneIndex = std::conditional_t<sizeof(T) == 4, int32_t, int64_t>;

constexpr int64_t round_up(int64_t value, int64_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

// Whether the clones run with 32 vector registers of 64 bytes: tiles that fill them would spill elsewhere.
inline bool has_wide_registers() {
#if LAPAL_HAS_CLONES
  __builtin_cpu_init();
  return __builtin_cpu_supports("x86-64-v4");
#else
  return false;
#endif
}

// Uninitialised, aligned scratch memory. Workers of parallel_for may not throw, so it reports failure
// instead.
template <class T>
class Scratch {
 public:
  explicit Scratch(int64_t size)
      : data_(static_cast<T*>(::operator new(size_t(size) * sizeof(T), kAlignment, std::nothrow))) {}
  ~Scratch() {
    ::operator delete(data_, kAlignment);
  }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  explicit operator bool() const {
    return data_ != nullptr;
  }
  T* data() const {
    return data_;
  }

 private:
  static constexpr std::align_val_t kAlignment{kBlockBytes};
  T* data_;
};

// Storage types of half precision, as plain bits so that their conversion is vector code.
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

// Exact for normal, subnormal and infinite values and NaN.
template <class T>
LAPAL_HD T widen(Float16Bits value) {
  const uint32_t magnitude = value.bits & 0x7fffu;
  const uint32_t sign = uint32_t(value.bits & 0x8000u) << 16;
  // The exponent is moved up so far that infinity overflows, then down by a multiplication.
  const float normal = detail::bit_cast<float>((magnitude << 13) + 0x70000000u) * 0x1p-112f;
  // A subnormal is mantissa times 2^-24: placed behind the leading one of 1/2, which is then taken away.
  const float subnormal = detail::bit_cast<float>(magnitude | 0x3f000000u) - 0.5f;
  const float wide = magnitude < 0x0400u ? subnormal : normal;
  return T(detail::bit_cast<float>(detail::bit_cast<uint32_t>(wide) | sign));
}

// Sum of a register's lanes, halving: lane + lane + width / 2, and so on.
template <class T>
LAPAL_HD T fold(const T* values) {
  constexpr int kL = kLanes<T>;
#if LAPAL_HAS_SHUFFLE
  // Shuffles of whole registers: through memory, every halving would wait for the store of the one before.
  typedef T Vector __attribute__((vector_size(kBlockBytes)));
  Vector sum;
  std::memcpy(&sum, values, sizeof(sum));
  if constexpr (kL == 16) {
    sum += __builtin_shufflevector(sum, sum, 8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7);
    sum += __builtin_shufflevector(sum, sum, 4, 5, 6, 7, 0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, 11);
    sum += __builtin_shufflevector(sum, sum, 2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13);
    sum += __builtin_shufflevector(sum, sum, 1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 15, 14);
  } else {
    sum += __builtin_shufflevector(sum, sum, 4, 5, 6, 7, 0, 1, 2, 3);
    sum += __builtin_shufflevector(sum, sum, 2, 3, 0, 1, 6, 7, 4, 5);
    sum += __builtin_shufflevector(sum, sum, 1, 0, 3, 2, 5, 4, 7, 6);
  }
  return sum[0];
#else
  T sums[kL];
  for (int lane = 0; lane < kL; ++lane) {
    sums[lane] = values[lane];
  }
  for (int width = kL / 2; width > 0; width /= 2) {
    for (int lane = 0; lane < width; ++lane) {
      sums[lane] += sums[lane + width];
    }
  }
  return sums[0];
#endif
}

// One step of dots() for one register of every row and vector, the chunk's register number kPart.
template <int kPart, int kRows, int kVectors, class From, class T>
LAPAL_HD void add_products(const From* rows, int64_t row_stride, const T* const (&vectors)[kVectors], int64_t i,
                           T (*sums)[kVectors][2][kLanes<T>]) {
  constexpr int kL = kLanes<T>;
  LAPAL_UNROLL
  for (int row = 0; row < kRows; ++row) {
    const From* values = rows + row * row_stride + i;
    LAPAL_UNROLL
    for (int k = 0; k < kVectors; ++k) {
      const T* vector = vectors[k] + i;
#pragma omp simd
      for (int lane = 0; lane < kL; ++lane) {
        sums[row][k][kPart][lane] += widen<T>(values[lane]) * vector[lane];
      }
    }
  }
}

// products[row][k] = row . vector_k, in an order that only `size` decides, so equal rows give equal bits however many
// are taken together. The rows may be stored in half precision: it converts exactly.
template <int kRows, int kVectors, class From, class T>
LAPAL_HD void dots(const From* rows, int64_t row_stride, const T* const (&vectors)[kVectors], int64_t size,
                   T (&products)[kRows][kVectors]) {
  constexpr int kL = kLanes<T>;
  alignas(kBlockBytes) T sums[kRows][kVectors][2][kL];  // two each, or one would wait for itself
  LAPAL_UNROLL
  for (int row = 0; row < kRows; ++row) {  // an initialiser would be a call to clear memory
    LAPAL_UNROLL
    for (int k = 0; k < kVectors; ++k) {
#pragma omp simd
      for (int lane = 0; lane < kL; ++lane) {
        sums[row][k][0][lane] = T(0);
        sums[row][k][1][lane] = T(0);
      }
    }
  }
  int64_t i = 0;
  for (; i + 2 * kL <= size; i += 2 * kL) {
    add_products<0, kRows>(rows, row_stride, vectors, i, sums);
    add_products<1, kRows>(rows, row_stride, vectors, i + kL, sums);
  }
  if (i + kL <= size) {
    add_products<0, kRows>(rows, row_stride, vectors, i, sums);
    i += kL;
  }
  LAPAL_UNROLL
  for (int row = 0; row < kRows; ++row) {
    LAPAL_UNROLL
    for (int k = 0; k < kVectors; ++k) {
      alignas(kBlockBytes) T sum[kL];
#pragma omp simd
      for (int lane = 0; lane < kL; ++lane) {
        sum[lane] = sums[row][k][0][lane] + sums[row][k][1][lane];
      }
      T total = fold(sum);
      for (int64_t last = i; last < size; ++last) {
        total += widen<T>(rows[row * row_stride + last]) * vectors[k][last];
      }
      products[row][k] = total;
    }
  }
}

// a . b in the order of dots().
template <class From, class T>
LAPAL_HD T dot(const From* a, const T* b, int64_t size) {
  T product[1][1];
  dots<1, 1>(a, 0, {b}, size, product);
  return product[0][0];
}

// The largest of kCount values that lie kLanes apart, in one lane. Pairs first, since one after the other every
// comparison would wait for the last; recursive, since clones forget the unrolling of an inner loop, and an inner loop
// keeps the lanes from becoming vector code. A NaN is found or not: its class makes every sum NaN either way.
template <int kCount, class T>
LAPAL_HD T largest_of(const T* values) {
  if constexpr (kCount == 1) {
    return values[0];
  } else {
    const T left = largest_of<kCount / 2>(values);
    const T right = largest_of<kCount - kCount / 2>(values + kCount / 2 * kLanes<T>);
    return left > right ? left : right;
  }
}

// best[lane] becomes the largest of itself and kClasses logits [class][lane].
template <int kClasses, class T>
LAPAL_HD void meet_classes(const T* logits, T* best) {
#pragma omp simd
  for (int lane = 0; lane < kLanes<T>; ++lane) {
    const T candidate = largest_of<kClasses>(logits + lane);
    best[lane] = candidate > best[lane] ? candidate : best[lane];
  }
}

template <class T>
LAPAL_HD void fill_lanes(T value, T* lanes) {
#pragma omp simd
  for (int lane = 0; lane < kLanes<T>; ++lane) {
    lanes[lane] = value;
  }
}

// First pass over a block of logits [C][lane]: the largest of each lane.
template <class T>
LAPAL_HD void find_largest(const T* logits, int64_t n_classes, T* largest) {
  constexpr int kUnrolled = 4;
  alignas(kBlockBytes) T best[kLanes<T>];
  fill_lanes(T(-__builtin_inff()), best);
  int64_t k = 0;
  for (; k + kUnrolled <= n_classes; k += kUnrolled) {
    meet_classes<kUnrolled>(logits + k * kLanes<T>, best);
  }
  for (; k < n_classes; ++k) {
    meet_classes<1>(logits + k * kLanes<T>, best);
  }
#pragma omp simd
  for (int lane = 0; lane < kLanes<T>; ++lane) {
    largest[lane] = best[lane];
  }
}

// The first class that has the largest logit: the winner.
template <class T>
LAPAL_HD void find_winner(const T* logits, int64_t n_classes, const T* largest, LaneIndex<T>* winner) {
  constexpr int kL = kLanes<T>;
  alignas(kBlockBytes) T best[kL];
  alignas(kBlockBytes) LaneIndex<T> first[kL];
#pragma omp simd
  for (int lane = 0; lane < kL; ++lane) {
    best[lane] = largest[lane];
    first[lane] = 0;
  }
  for (int64_t k = n_classes - 1; k > 0; --k) {
    const T* row = logits + k * kL;
    const auto label = LaneIndex<T>(k);
#pragma omp simd
    for (int lane = 0; lane < kL; ++lane) {
      first[lane] = row[lane] == best[lane] ? label : first[lane];
    }
  }
#pragma omp simd
  for (int lane = 0; lane < kL; ++lane) {
    winner[lane] = logits[lane] == best[lane] ? LaneIndex<T>(0) : first[lane];
  }
}

// Second pass: the sums over all classes but the winner, relative to it. A class that ties with it counts as one
// without an exponential, so nothing needs to know which of them the winner is. `link` is the factor of the mean-field
// link per lane, not read without kLinked.
template <Moment moment, bool kLinked, class T>
LAPAL_HD void sum_losers(const T* logits, int64_t n_classes, const T* largest, const T* link, T* rest, T* moments) {
  constexpr int kL = kLanes<T>;
  alignas(kBlockBytes) T sum[kL];
  alignas(kBlockBytes) T second[kL];
  alignas(kBlockBytes) T ties[kL];  // classes as large as the largest, beyond the first
  alignas(kBlockBytes) T best[kL];
  alignas(kBlockBytes) T factor[kL];
#pragma omp simd
  for (int lane = 0; lane < kL; ++lane) {
    sum[lane] = T(0);
    second[lane] = T(0);
    ties[lane] = T(-1);
    best[lane] = largest[lane];
    factor[lane] = kLinked ? link[lane] : T(1);
  }
  for (int64_t k = 0; k < n_classes; ++k) {
    const T* row = logits + k * kL;
#pragma omp simd
    for (int lane = 0; lane < kL; ++lane) {
      T shifted = row[lane] - best[lane];
      if (kLinked) {
        shifted *= factor[lane];
      }
      const bool loses = !(shifted >= T(0));  // NaN too, so that it is seen
      const T other = losing_term(shifted, loses);
      sum[lane] += other;
      ties[lane] += loses ? T(0) : T(1);
      second[lane] = add_moment<moment>(second[lane], other, shifted);
    }
  }
#pragma omp simd
  for (int lane = 0; lane < kL; ++lane) {
    rest[lane] = sum[lane] + ties[lane];
    moments[lane] = add_ties<moment>(second[lane], ties[lane]);
  }
}

}  // namespace lapal_ext
