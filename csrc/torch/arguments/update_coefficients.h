// The arguments of update_coefficients, checked once for every device.
#pragma once

#include <string>

#include "torch/checks.h"
#include "torch/choices.h"

namespace lapal_ext {

constexpr const char* kOp = "update_coefficients";

struct UpdateCoefficientsArguments {
  ScalarType dtype;
  int64_t n_hypotheses, batch_size, n_classes;
  UpdateRule rule;
};

// The labels themselves are not looked at.
inline UpdateCoefficientsArguments check_update_coefficients(const Tensor& gram, const Tensor& logits,
                                                             const Tensor& targets, double gamma,
                                                             const std::string& step, const std::string& curvature) {
  check_dim(logits, 3, kOp, "logits");
  const UpdateCoefficientsArguments call{gram.scalar_type(), logits.size(0), logits.size(1), logits.size(2),
                                         parse_update_rule(gamma, step, curvature, kOp)};
  const TensorChecks check(kOp, gram, "gram");
  check(gram, {call.n_hypotheses, call.batch_size, call.batch_size}, call.dtype, "gram");
  check(logits, {call.n_hypotheses, call.batch_size, call.n_classes}, call.dtype, "logits");
  check(targets, {call.n_hypotheses, call.batch_size}, ScalarType::Long, "targets");
  return call;
}

}  // namespace lapal_ext
