// Sums over the features of every row of a pool, for the selection steps: dot products, and squared distances.
#pragma once

#include <cstdint>

#include "shared/half_precision.h"

namespace lapal_ext {

// One plain function for every pair of compute and storage type, because templates cannot have clones.
#define LAPAL_FOR_POOL_TYPES(KERNEL) \
  KERNEL(float, float)               \
  KERNEL(float, double)              \
  KERNEL(float, Bfloat16Bits)        \
  KERNEL(float, Float16Bits)         \
  KERNEL(double, float)              \
  KERNEL(double, double)             \
  KERNEL(double, Bfloat16Bits)       \
  KERNEL(double, Float16Bits)

// Contiguous rows, `stride` apart.
template <class S>
struct PoolRows {
  const S* data;
  int64_t stride;
  int64_t n_features;
};

// A vector that rows are multiplied with, and the term that bias and centring add to the product.
template <class T>
struct Direction {
  const T* vector;
  T offset;
};

// products[k][i] = row_i . vector_k + offset_k for `rows` rows from `start`; lines of `products` are `stride` apart.
template <int kDirections, class T, class S>
void multiply_rows(const PoolRows<S>& pool, int64_t start, int64_t rows, const Direction<T> (&directions)[kDirections],
                   T* products, int64_t stride);

constexpr int kPointsAtOnce = 4;  // they share the loads of a row, and their sums fill half of the registers of AVX-512

// squares[k][i] = sum_j ((row_i[j] - points_k[j]) scale[j])^2 for `rows` rows from `start`; kPoints is 1 or
// kPointsAtOnce. A row that equals a point has distance zero.
template <int kPoints, class T, class S>
void square_distances(const PoolRows<S>& pool, int64_t start, int64_t rows, const T* const (&points)[kPoints],
                      const T* scale, T* squares, int64_t stride);

}  // namespace lapal_ext
