// The arguments of mc_predictive, checked once for every device.
#pragma once

#include "torch/checks.h"

namespace lapal_ext {

constexpr const char* kOp = "mc_predictive";

struct McPredictiveArguments {
  ScalarType dtype;
  int64_t n_rows, n_classes, n_samples;
};

inline McPredictiveArguments check_mc_predictive(const Tensor& logits, const Tensor& variance, const Tensor& noise) {
  check_dim(logits, 2, kOp, "logits");
  check_dim(noise, 2, kOp, "noise");
  const McPredictiveArguments call{logits.scalar_type(), logits.size(0), logits.size(1), noise.size(0)};
  STD_TORCH_CHECK(call.n_classes > 0, kOp, ": logits must have at least one class");
  const TensorChecks check(kOp, logits, "logits");
  check(variance, {call.n_rows}, call.dtype, "variance");
  check(noise, {call.n_samples, call.n_classes}, call.dtype, "noise");
  return call;
}

}  // namespace lapal_ext
