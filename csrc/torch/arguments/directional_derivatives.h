// The arguments of directional_derivatives, checked once for every device.
#pragma once

#include "torch/checks.h"

namespace lapal_ext {

constexpr const char* kOp = "directional_derivatives";

struct DirectionalDerivativesArguments {
  ScalarType dtype;
  int64_t n_rows, n_classes;
};

// The indices in targets are not looked at.
inline DirectionalDerivativesArguments check_directional_derivatives(const Tensor& logits, const Tensor& direction,
                                                                     const Tensor& targets, const Tensor& trust) {
  check_dim(logits, 2, kOp, "logits");
  const DirectionalDerivativesArguments call{logits.scalar_type(), logits.size(1), logits.size(0)};
  STD_TORCH_CHECK(call.n_classes > 0, kOp, ": logits must have at least one class");
  const TensorChecks check(kOp, logits, "logits");
  check(direction, {call.n_classes, call.n_rows}, call.dtype, "direction");
  check(targets, {call.n_rows}, ScalarType::Long, "targets");
  check(trust, {call.n_rows}, call.dtype, "trust");
  return call;
}

}  // namespace lapal_ext
