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
#include <new>
#include <type_traits>

#include "clones.h"
#include "likelihood.h"
#include "storage.h"

// Before a loop of constant length that must unroll completely, so that its array stays in registers.
#if defined(__clang__)
#define LAPAL_UNROLL _Pragma("clang loop unroll(full)")
#else
#define LAPAL_UNROLL _Pragma("GCC unroll 16")
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

// Sum of kWidth values, halving: `reduction` of OpenMP would add them one after the other. Destroys the values.
template <int kWidth, class T>
LAPAL_HD T fold(T* values) {
  if constexpr (kWidth == 1) {
    return values[0];
  } else {
#pragma omp simd
    for (int lane = 0; lane < kWidth / 2; ++lane) {
      values[lane] += values[lane + kWidth / 2];
    }
    return fold<kWidth / 2>(values);
  }
}

// a . b in an order that only `size` decides, so equal rows give equal bits. The elements of `a` may be
// stored in half precision: they convert exactly.
template <class From, class T>
LAPAL_HD T dot(const From* a, const T* b, int64_t size) {
  constexpr int kL = kLanes<T>;
  constexpr int kChunk = 4 * kL;  // four running sums: one would wait for itself
  alignas(kBlockBytes) T sums[kChunk] = {};
  int64_t i = 0;
  for (; i + kChunk <= size; i += kChunk) {
#pragma omp simd
    for (int lane = 0; lane < kChunk; ++lane) {
      sums[lane] += widen<T>(a[i + lane]) * b[i + lane];
    }
  }
  for (; i + kL <= size; i += kL) {
#pragma omp simd
    for (int lane = 0; lane < kL; ++lane) {
      sums[lane] += widen<T>(a[i + lane]) * b[i + lane];
    }
  }
  for (int lane = 0; i + lane < size; ++lane) {
    sums[kL + lane] += widen<T>(a[i + lane]) * b[i + lane];
  }
  return fold<kChunk>(sums);
}

// The largest logit of each lane, and the first class that has it.
template <class T>
struct Winner {
  alignas(kBlockBytes) T logit[kLanes<T>];
  alignas(kBlockBytes) LaneIndex<T> index[kLanes<T>];

  LAPAL_HD void reset() {
#pragma omp simd
    for (int lane = 0; lane < kLanes<T>; ++lane) {
      logit[lane] = -__builtin_inff();
      index[lane] = 0;
    }
  }

  // Takes in kClasses classes, the first of which is `first`: logits [kClasses][lane].
  template <int kClasses>
  LAPAL_HD void meet(const T* logits, int64_t first) {
#pragma omp simd
    for (int lane = 0; lane < kLanes<T>; ++lane) {
      T best = logit[lane];
      LaneIndex<T> winner = index[lane];
      challenge<0, kClasses>(logits + lane, LaneIndex<T>(first), best, winner);
      logit[lane] = best;
      index[lane] = winner;
    }
  }

 private:
  // One class after the other in one lane. Recursive because clones forget the unrolling of an inner loop, and an inner
  // loop keeps the lanes from becoming vector code.
  template <int k, int kClasses>
  LAPAL_HD static void challenge(const T* logits, LaneIndex<T> first, T& best, LaneIndex<T>& winner) {
    if constexpr (k < kClasses) {
      const T candidate = logits[k * kLanes<T>];
      const bool wins = candidate > best;
      best = wins ? candidate : best;
      winner = wins ? first + k : winner;
      challenge<k + 1, kClasses>(logits, first, best, winner);
    }
  }
};

// First pass over a block of logits [C][lane].
template <class T>
LAPAL_HD void find_winner(const T* logits, int64_t n_classes, Winner<T>& winner) {
  winner.reset();
  int64_t k = 0;
  for (; k + 4 <= n_classes; k += 4) {
    winner.template meet<4>(logits + k * kLanes<T>, k);
  }
  for (; k < n_classes; ++k) {
    winner.template meet<1>(logits + k * kLanes<T>, k);
  }
}

// Second pass: the exponentials of all classes but the winner, relative to it. `link` is the factor of the
// mean-field link per lane, not read without kLinked.
template <Moment moment, bool kLinked, class T>
LAPAL_HD void sum_others(const T* logits, int64_t n_classes, const Winner<T>& winner, const T* link, T* rest,
                         T* moments) {
  constexpr int kL = kLanes<T>;
  alignas(kBlockBytes) T sum[kL];
  alignas(kBlockBytes) T second[kL];
  alignas(kBlockBytes) T best[kL];
  alignas(kBlockBytes) T factor[kL];
  alignas(kBlockBytes) LaneIndex<T> skipped[kL];
#pragma omp simd
  for (int lane = 0; lane < kL; ++lane) {
    sum[lane] = T(0);
    second[lane] = T(0);
    best[lane] = winner.logit[lane];
    skipped[lane] = winner.index[lane];
    factor[lane] = kLinked ? link[lane] : T(1);
  }
  for (int64_t k = 0; k < n_classes; ++k) {
    const T* row = logits + k * kL;
    const auto label = LaneIndex<T>(k);
#pragma omp simd
    for (int lane = 0; lane < kL; ++lane) {
      T shifted = row[lane] - best[lane];
      if (kLinked) {
        shifted *= factor[lane];
      }
      const T other = losing_term(shifted, label != skipped[lane]);
      sum[lane] += other;
      second[lane] = add_moment<moment>(second[lane], other, shifted);
    }
  }
#pragma omp simd
  for (int lane = 0; lane < kL; ++lane) {
    rest[lane] = sum[lane];
    moments[lane] = second[lane];
  }
}

}  // namespace lapal_ext
