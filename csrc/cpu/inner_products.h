// The product behind inner_products, for kernels that need it on memory of their own.
#pragma once

#include <cstdint>

namespace lapal_ext {

template <class T>
struct Matrix {
  const T* data;
  int64_t n_rows;
  int64_t row_stride;
  int64_t feature_stride;
};

// out [N, E] = rows points^T, contiguous.
template <class T>
void multiply(const Matrix<T>& rows, const Matrix<T>& points, int64_t depth, T* out);

}  // namespace lapal_ext
