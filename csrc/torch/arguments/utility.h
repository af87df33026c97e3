// The arguments of utility, checked once for every device.
#pragma once

#include <optional>
#include <string>

#include "torch/arguments/utility_inputs.h"
#include "torch/checks.h"
#include "torch/choices.h"

namespace lapal_ext {

constexpr const char* kOp = "utility";

struct UtilityArguments {
  ScalarType dtype;
  int64_t n_rows, n_classes;
  Utility kind;
};

inline UtilityArguments check_utility(const Tensor& logits, const std::optional<Tensor>& variance,
                                      const std::optional<Tensor>& scale, const std::string& kind) {
  check_dim(logits, 2, kOp, "logits");
  const UtilityArguments call{logits.scalar_type(), logits.size(0), logits.size(1), parse_utility(kind, kOp)};
  STD_TORCH_CHECK(call.n_classes > 0, kOp, ": logits must have at least one class");
  const TensorChecks check(kOp, logits, "logits");
  check_utility_inputs(check, call.kind, call.n_rows, call.dtype, variance, scale, kOp);
  return call;
}

}  // namespace lapal_ext
