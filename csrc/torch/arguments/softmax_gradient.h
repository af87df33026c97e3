// The arguments of softmax_gradient, checked once for every device.
#pragma once

#include "torch/checks.h"

namespace lapal_ext {

constexpr const char* kOp = "softmax_gradient";

struct SoftmaxGradientArguments {
  ScalarType dtype;
  int64_t n_rows, n_features, n_classes, n_directions;
};

// The indices in targets are not looked at.
inline SoftmaxGradientArguments check_softmax_gradient(const Tensor& features, const Tensor& logits,
                                                       const Tensor& targets, const Tensor& trust,
                                                       const Tensor& directions) {
  check_dim(features, 2, kOp, "features");
  check_dim(logits, 2, kOp, "logits");
  check_dim(directions, 3, kOp, "directions");
  const SoftmaxGradientArguments call{features.scalar_type(), features.size(0), features.size(1), logits.size(0),
                                      directions.size(0)};
  STD_TORCH_CHECK(call.n_classes > 0, kOp, ": logits must have at least one class");
  const TensorChecks check(kOp, features, "features");
  check(logits, {call.n_classes, call.n_rows}, call.dtype, "logits");
  check(targets, {call.n_rows}, ScalarType::Long, "targets");
  check(trust, {call.n_rows}, call.dtype, "trust");
  check(directions, {call.n_directions, call.n_classes, call.n_rows}, call.dtype, "directions");
  return call;
}

}  // namespace lapal_ext
