// The product behind inner_products, for kernels that need it on memory of their own.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <cstdint>

namespace lapal_ext {

template <class T>
struct Matrix {
  const T* data;
  int64_t n_rows;
  int64_t row_stride;
  int64_t feature_stride;
};

template <class T>
Matrix<T> matrix_of(const torch::stable::Tensor& tensor) {
  return {tensor.const_data_ptr<T>(), tensor.size(0), tensor.stride(0), tensor.stride(1)};
}

enum class Part { all, lower };

// out [N, E] = rows points^T, contiguous; of the lower part, what lies above the diagonal may stay as it was.
template <class T>
void multiply(const Matrix<T>& rows, const Matrix<T>& points, int64_t depth, T* out, Part part = Part::all);

}  // namespace lapal_ext
