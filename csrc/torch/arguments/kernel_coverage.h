// The arguments of kernel_coverage, checked once for every device.
#pragma once

#include "torch/checks.h"

namespace lapal_ext {

constexpr const char* kOp = "kernel_coverage";

struct KernelCoverageArguments {
  ScalarType dtype;
  int64_t n_rows, n_references, n_features;
};

inline KernelCoverageArguments check_kernel_coverage(const Tensor& rows, const Tensor& references, const Tensor& weight,
                                                     const Tensor& covered) {
  check_dim(rows, 2, kOp, "rows");
  check_dim(references, 2, kOp, "references");
  const KernelCoverageArguments call{rows.scalar_type(), rows.size(0), references.size(0), rows.size(1)};
  const TensorChecks check(kOp, rows, "rows");
  check(references, {call.n_references, call.n_features}, call.dtype, "references");
  check(weight, {call.n_references}, call.dtype, "weight");
  check(covered, {call.n_references}, call.dtype, "covered");
  return call;
}

}  // namespace lapal_ext
