// The arguments of coverage_gain, checked once for every device.
#pragma once

#include "torch/checks.h"

namespace lapal_ext {

constexpr const char* kOp = "coverage_gain";

struct CoverageGainArguments {
  ScalarType dtype;
  int64_t n_rows, n_references;
};

inline CoverageGainArguments check_coverage_gain(const Tensor& kernel, const Tensor& weight, const Tensor& covered) {
  check_dim(kernel, 2, kOp, "kernel");
  const CoverageGainArguments call{kernel.scalar_type(), kernel.size(0), kernel.size(1)};
  const TensorChecks check(kOp, kernel, "kernel");
  check(weight, {call.n_references}, call.dtype, "weight");
  check(covered, {call.n_references}, call.dtype, "covered");
  return call;
}

}  // namespace lapal_ext
