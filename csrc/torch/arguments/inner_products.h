// The arguments of inner_products, checked once for every device.
#pragma once

#include "torch/checks.h"

namespace lapal_ext {

constexpr const char* kOp = "inner_products";

struct InnerProductsArguments {
  ScalarType dtype;
  int64_t n_rows, n_points, n_features;
};

inline InnerProductsArguments check_inner_products(const Tensor& rows, const Tensor& points) {
  check_dim(rows, 2, kOp, "rows");
  check_dim(points, 2, kOp, "points");
  const InnerProductsArguments call{rows.scalar_type(), rows.size(0), points.size(0), rows.size(1)};
  const TensorChecks check(kOp, rows, "rows");
  check(points, {call.n_points, call.n_features}, call.dtype, "points");
  return call;
}

}  // namespace lapal_ext
