// The arguments of nearest_distance_, checked once for every device.
#pragma once

#include "torch/checks.h"

namespace lapal_ext {

constexpr const char* kOp = "nearest_distance_";

struct NearestDistanceArguments {
  ScalarType dtype;  // of everything but the pool
  int64_t n_rows, n_features, n_centres;
};

inline NearestDistanceArguments check_nearest_distance(const Tensor& pool, const Tensor& centres, const Tensor& scale,
                                                       const Tensor& nearest, const Tensor& taken) {
  check_dim(pool, 2, kOp, "pool");
  check_dim(centres, 2, kOp, "centres");
  const NearestDistanceArguments call{centres.scalar_type(), pool.size(0), pool.size(1), centres.size(0)};
  const TensorChecks check(kOp, pool, "pool");
  check(centres, {call.n_centres, call.n_features}, call.dtype, "centres");
  check(scale, {call.n_features}, call.dtype, "scale");
  check(nearest, {call.n_rows}, call.dtype, "nearest");
  check(taken, {call.n_rows}, ScalarType::Bool, "taken");
  return call;
}

}  // namespace lapal_ext
