// The arguments of predictive_variance, checked once for every device.
#pragma once

#include "torch/checks.h"

namespace lapal_ext {

constexpr const char* kOp = "predictive_variance";

struct PredictiveVarianceArguments {
  ScalarType dtype;
  int64_t n_rows, n_features;
};

inline PredictiveVarianceArguments check_predictive_variance(const Tensor& features, const Tensor& covariance) {
  check_dim(features, 2, kOp, "features");
  const PredictiveVarianceArguments call{features.scalar_type(), features.size(0), features.size(1)};
  const TensorChecks check(kOp, features, "features");
  check(covariance, {call.n_features, call.n_features}, call.dtype, "covariance");
  return call;
}

}  // namespace lapal_ext
