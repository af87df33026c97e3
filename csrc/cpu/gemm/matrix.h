// A matrix with any strides, as the products of this folder read it.
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

}  // namespace lapal_ext
