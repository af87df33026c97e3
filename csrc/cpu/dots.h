// Dot products of rows with vectors, in an order that their length alone decides.
//
// Features lie in lanes. Equal rows give equal bits wherever they lie and however many are taken together, so that
// duplicates tie exactly and no result depends on tiles or threads.
#pragma once

#include <cstring>

#include "cpu/simd.h"

#if defined(__has_builtin)
#if __has_builtin(__builtin_shufflevector)
#define LAPAL_HAS_SHUFFLE 1
#endif
#endif
#ifndef LAPAL_HAS_SHUFFLE
#define LAPAL_HAS_SHUFFLE 0
#endif

namespace lapal_ext {

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

}  // namespace lapal_ext
