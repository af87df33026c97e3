// The arguments of rank_one_update, checked once for every device.
#pragma once

#include "torch/checks.h"

namespace lapal_ext {

constexpr const char* kOp = "rank_one_update";

struct RankOneUpdateArguments {
  ScalarType dtype;
  int64_t n_matrices, n_features;
};

inline RankOneUpdateArguments check_rank_one_update(const Tensor& covariance, const Tensor& features,
                                                    const Tensor& curvature) {
  check_dim(features, 2, kOp, "features");
  const RankOneUpdateArguments call{covariance.scalar_type(), features.size(0), features.size(1)};
  const TensorChecks check(kOp, covariance, "covariance");
  check(covariance, {call.n_matrices, call.n_features, call.n_features}, call.dtype, "covariance");
  check(features, {call.n_matrices, call.n_features}, call.dtype, "features");
  check(curvature, {call.n_matrices}, call.dtype, "curvature");
  return call;
}

}  // namespace lapal_ext
