// The arguments of rank_n_update, checked once for every device.
#pragma once

#include <optional>

#include "torch/checks.h"

namespace lapal_ext {

constexpr const char* kOp = "rank_n_update";

struct RankNUpdateArguments {
  ScalarType dtype;
  int64_t n_rows, n_features;
};

inline RankNUpdateArguments check_rank_n_update(const Tensor& matrix, const Tensor& rows, const Tensor& weights,
                                                const std::optional<Tensor>& triangle) {
  check_dim(rows, 2, kOp, "rows");
  const RankNUpdateArguments call{matrix.scalar_type(), rows.size(0), rows.size(1)};
  const TensorChecks check(kOp, matrix, "matrix");
  check(matrix, {call.n_features, call.n_features}, call.dtype, "matrix");
  check(rows, {call.n_rows, call.n_features}, call.dtype, "rows");
  check(weights, {call.n_rows}, call.dtype, "weights");
  if (triangle.has_value()) {
    check(*triangle, {call.n_rows, call.n_rows}, call.dtype, "triangle");
  }
  return call;
}

}  // namespace lapal_ext
