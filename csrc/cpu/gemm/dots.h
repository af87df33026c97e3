// Dot products of rows with vectors. The order of the sums depends on the length only.
//
// Features are in lanes. Equal rows have equal products, at any address and for any number of vectors, so duplicates
// tie exactly and no result depends on tiles or threads.
#pragma once

#include <cstring>

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

constexpr int kParts = 4;  // running sums of a product, so that additions do not wait for each other

// One step of dots(): register kPart of the chunk.
template <int kPart, int kVectors, class From, class T>
LAPAL_HD void add_products(const From* row, const T* const (&vectors)[kVectors], int64_t i,
                           T (*sums)[kParts][kLanes<T>]) {
  constexpr int kL = kLanes<T>;
  LAPAL_UNROLL
  for (int k = 0; k < kVectors; ++k) {
    const T* vector = vectors[k] + i;
#pragma omp simd
    for (int lane = 0; lane < kL; ++lane) {
      sums[k][kPart][lane] += widen<T>(row[i + lane]) * vector[lane];
    }
  }
}

// products[k] = row . vector_k, in an order that depends on `size` only. The row may be stored in half precision: it is
// converted exactly, once for all vectors.
template <int kVectors, class From, class T>
LAPAL_HD void dots(const From* row, const T* const (&vectors)[kVectors], int64_t size, T (&products)[kVectors]) {
  constexpr int kL = kLanes<T>;
  alignas(kBlockBytes) T sums[kVectors][kParts][kL];
  LAPAL_UNROLL
  for (int k = 0; k < kVectors; ++k) {  // an initialiser would compile to a call that clears memory
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
    add_products<0>(row, vectors, i, sums);
    add_products<1>(row, vectors, i + kL, sums);
    add_products<2>(row, vectors, i + 2 * kL, sums);
    add_products<3>(row, vectors, i + 3 * kL, sums);
  }
  for (; i + kL <= size; i += kL) {
    add_products<0>(row, vectors, i, sums);
  }
  LAPAL_UNROLL
  for (int k = 0; k < kVectors; ++k) {
    alignas(kBlockBytes) T sum[kL];
#pragma omp simd
    for (int lane = 0; lane < kL; ++lane) {
      sum[lane] = (sums[k][0][lane] + sums[k][1][lane]) + (sums[k][2][lane] + sums[k][3][lane]);
    }
    T total = fold(sum);
    for (int64_t last = i; last < size; ++last) {
      total += widen<T>(row[last]) * vectors[k][last];
    }
    products[k] = total;
  }
}

// a . b, in the order of dots().
template <class From, class T>
LAPAL_HD T dot(const From* a, const T* b, int64_t size) {
  T product[1];
  dots<1>(a, {b}, size, product);
  return product[0];
}

}  // namespace lapal_ext
