// The arguments of absorb_labels, checked once for every device.
#pragma once

#include <string>

#include "torch/checks.h"
#include "torch/choices.h"

namespace lapal_ext {

constexpr const char* kOp = "absorb_labels";

struct AbsorbLabelsArguments {
  ScalarType dtype;
  int64_t n_classes, n_features, n_rows;
  UpdateRule rule;
};

// The labels themselves are not looked at.
inline AbsorbLabelsArguments check_absorb_labels(const Tensor& mean, const Tensor& covariance, const Tensor& features,
                                                 const Tensor& targets, double gamma, const std::string& step,
                                                 const std::string& curvature) {
  check_dim(mean, 2, kOp, "mean");
  check_dim(features, 2, kOp, "features");
  const AbsorbLabelsArguments call{mean.scalar_type(), mean.size(0), mean.size(1), features.size(0),
                                   parse_update_rule(gamma, step, curvature, kOp)};
  const TensorChecks check(kOp, mean, "mean");
  check(covariance, {call.n_features, call.n_features}, call.dtype, "covariance");
  check(features, {call.n_rows, call.n_features}, call.dtype, "features");
  check(targets, {call.n_rows}, ScalarType::Long, "targets");
  return call;
}

}  // namespace lapal_ext
