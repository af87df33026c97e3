// SIMD without a library: plain loops over lanes that the compiler turns into vector code, three times over.
//
// A block holds one vector register of AVX-512 per value, class-major: element [k][lane]. Loops over the lanes
// carry `#pragma omp simd`; their trip count is a constant, so the narrower clones unroll them.
//
// The compiler clones only the function that carries LAPAL_CLONES, and only what is inlined into it: helpers
// are LAPAL_HD (always inlined), and templates are called from plain functions, one per dtype.
#pragma once

#include <cstddef>
#include <cstdint>
#include <new>
#include <type_traits>

#include "cpu/simd/clones.h"
#include "shared/half_precision.h"
#include "shared/likelihood.h"

// Before a loop of constant length that must unroll completely, so that its array stays in registers.
#if defined(__clang__)
#define LAPAL_UNROLL _Pragma("clang loop unroll(full)")
#else
#define LAPAL_UNROLL _Pragma("GCC unroll 16")
#endif

// Whether vectors of the compiler can be shuffled.
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

// A vector of the compiler.
template <class T, int kBytes>
struct VectorOf {
  typedef T Type __attribute__((vector_size(kBytes)));
};

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
      const T winner = shifted >= T(0) ? T(1) : T(0);     // NaN loses, so that it is seen
      const T other = exp_nonpositive(shifted) - winner;  // exactly zero for the winner
      sum[lane] += other;
      ties[lane] += winner;
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
