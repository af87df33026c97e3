// The rows of a matrix of logits [N, C] with any strides, as kernels read them.
#pragma once

#include <cstdint>

namespace lapal_ext {

template <class T>
struct LogitRows {
  const T* data;
  int64_t row_stride;
  int64_t class_stride;
  int64_t n_rows;
  int64_t n_classes;
};

}  // namespace lapal_ext
