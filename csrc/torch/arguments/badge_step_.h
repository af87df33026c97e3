// The arguments of badge_step_, checked once for every device.
#pragma once

#include "torch/checks.h"

namespace lapal_ext {

constexpr const char* kOp = "badge_step_";

struct BadgeStepArguments {
  ScalarType dtype;  // of everything but the pool
  int64_t n_rows, n_features, n_classes;
};

inline BadgeStepArguments check_badge_step(const Tensor& pool, const Tensor& u, const Tensor& offset,
                                           const Tensor& gradient, const Tensor& g, const Tensor& squared_norm,
                                           const Tensor& centre_norm, const Tensor& threshold, const Tensor& distance) {
  check_dim(pool, 2, kOp, "pool");
  check_dim(gradient, 2, kOp, "gradient");
  const BadgeStepArguments call{u.scalar_type(), pool.size(0), pool.size(1), gradient.size(1)};
  const TensorChecks check(kOp, pool, "pool");
  check(u, {call.n_features}, call.dtype, "u");
  check(offset, {}, call.dtype, "offset");
  check(gradient, {call.n_rows, call.n_classes}, call.dtype, "gradient");
  check(g, {call.n_classes}, call.dtype, "g");
  check(squared_norm, {call.n_rows}, call.dtype, "squared_norm");
  check(centre_norm, {}, call.dtype, "centre_norm");
  check(threshold, {}, call.dtype, "threshold");
  check(distance, {call.n_rows}, call.dtype, "distance");
  return call;
}

}  // namespace lapal_ext
