// The arguments of predictive, checked once for every device.
#pragma once

#include <optional>

#include "torch/checks.h"

namespace lapal_ext {

constexpr const char* kOp = "predictive";

struct PredictiveArguments {
  ScalarType dtype;
  int64_t n_rows, n_classes;
};

inline PredictiveArguments check_predictive(const Tensor& logits, const std::optional<Tensor>& variance) {
  check_dim(logits, 2, kOp, "logits");
  const PredictiveArguments call{logits.scalar_type(), logits.size(0), logits.size(1)};
  const TensorChecks check(kOp, logits, "logits");
  if (variance.has_value()) {
    check(*variance, {call.n_rows}, call.dtype, "variance");
  }
  return call;
}

}  // namespace lapal_ext
