// The rows of a tensor, for launchers.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include "shared/logit_rows.h"

namespace lapal_ext {

template <class T>
LogitRows<T> rows_of_logits(const torch::stable::Tensor& logits) {
  return {logits.const_data_ptr<T>(), logits.stride(0), logits.stride(1), logits.size(0), logits.size(1)};
}

// The rows of a matrix whose logits are class-major, [C, N].
template <class T>
LogitRows<T> rows_of_lines(const torch::stable::Tensor& logits) {
  return {logits.const_data_ptr<T>(), logits.stride(1), logits.stride(0), logits.size(1), logits.size(0)};
}

// The matrix itself if each of its rows is contiguous, else a copy.
inline torch::stable::Tensor with_contiguous_rows(const torch::stable::Tensor& matrix) {
  return matrix.size(1) <= 1 || matrix.stride(1) == 1 ? matrix : torch::stable::contiguous(matrix);
}

}  // namespace lapal_ext
