// Sums over the features of a row, such as dot products. The order of the sums depends on the length only.
//
// Features are in lanes. Equal rows have equal sums, at any address and for any number of vectors, so duplicates
// tie exactly and no result depends on tiles or threads.
#pragma once

#include <cstring>
#include <type_traits>

#include "cpu/simd/half_lanes.h"
#include "cpu/simd/lanes.h"
#include "shared/half_precision.h"

namespace lapal_ext {

// Sum of the lanes of a register, by halves: lane i plus lane i + width / 2, and so on.
template <class T>
LAPAL_HD T fold(const T* values) {
  constexpr int kL = kLanes<T>;
#if LAPAL_HAS_SHUFFLE
  // Shuffles of registers. In memory, every step would wait for the store of the step before.
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

constexpr int kParts = 4;  // running parts of a sum, so that additions do not wait for each other

// One step of sum_terms(): register kPart of the chunk.
template <int kPart, int kSums, class From, class Term, class T>
LAPAL_HD void add_terms(const From* row, const Term& term, int64_t i, T (*sums)[kParts][kLanes<T>]) {
  constexpr int kL = kLanes<T>;
  const auto add = [&](const auto* values) __attribute__((always_inline)) {
    LAPAL_UNROLL
    for (int k = 0; k < kSums; ++k) {
#pragma omp simd
      for (int lane = 0; lane < kL; ++lane) {
        term.add(k, i + lane, widen<T>(values[lane]), sums[k][kPart][lane]);
      }
    }
  };
  if constexpr (std::is_same_v<From, F16cBits>) {
    float wide[kL];
    f16c_widen<kL>(row + i, wide);
    add(wide);
  } else {
    add(row + i);
  }
}

// results[k] = sum over i of the term that row[i] adds to sum k, in an order that depends on `size` only.
// term.add(k, i, value, sum) adds it. The row may be stored in half precision: it is converted exactly, once for all
// sums.
template <int kSums, class From, class Term, class T>
LAPAL_HD void sum_terms(const From* row, int64_t size, const Term& term, T (&results)[kSums]) {
  constexpr int kL = kLanes<T>;
  alignas(kBlockBytes) T sums[kSums][kParts][kL];
  LAPAL_UNROLL
  for (int k = 0; k < kSums; ++k) {  // an initialiser would compile to a call that clears memory
    LAPAL_UNROLL
    for (int part = 0; part < kParts; ++part) {
#pragma omp simd
      for (int lane = 0; lane < kL; ++lane) {
        sums[k][part][lane] = T(0);
      }
    }
  }
  int64_t i = 0;
  for (; i + kParts * kL <= size; i += kParts * kL) {
    add_terms<0, kSums>(row, term, i, sums);
    add_terms<1, kSums>(row, term, i + kL, sums);
    add_terms<2, kSums>(row, term, i + 2 * kL, sums);
    add_terms<3, kSums>(row, term, i + 3 * kL, sums);
  }
  for (; i + kL <= size; i += kL) {
    add_terms<0, kSums>(row, term, i, sums);
  }
  LAPAL_UNROLL
  for (int k = 0; k < kSums; ++k) {
    alignas(kBlockBytes) T sum[kL];
#pragma omp simd
    for (int lane = 0; lane < kL; ++lane) {
      sum[lane] = (sums[k][0][lane] + sums[k][1][lane]) + (sums[k][2][lane] + sums[k][3][lane]);
    }
    T total = fold(sum);
    for (int64_t last = i; last < size; ++last) {
      term.add(k, last, widen<T>(row[last]), total);
    }
    results[k] = total;
  }
}

// One number, or as many as a compiler vector has, at any alignment.
template <class T>
LAPAL_HD void load_values(const T* from, T& to) {
  to = *from;
}

template <class T, class Vector>
LAPAL_HD void load_values(const T* from, Vector& to) {
  std::memcpy(&to, from, sizeof(to));
}

// The terms of products with kVectors vectors. V is T, or a compiler vector of it.
template <int kVectors, class T>
struct ProductTerms {
  const T* vectors[kVectors];

  template <class V>
  LAPAL_HD void add(int k, int64_t i, const V& values, V& sum) const {
    V factors;
    load_values(vectors[k] + i, factors);
    sum += values * factors;
  }
};

// products[k] = row . vector_k, in the order of sum_terms().
template <int kVectors, class From, class T>
LAPAL_HD void dots(const From* row, const T* const (&vectors)[kVectors], int64_t size, T (&products)[kVectors]) {
  ProductTerms<kVectors, T> term;
  LAPAL_UNROLL
  for (int k = 0; k < kVectors; ++k) {
    term.vectors[k] = vectors[k];
  }
  sum_terms(row, size, term, products);
}

// a . b, in the order of dots().
template <class From, class T>
LAPAL_HD T dot(const From* a, const T* b, int64_t size) {
  T product[1];
  dots<1>(a, {b}, size, product);
  return product[0];
}

}  // namespace lapal_ext
