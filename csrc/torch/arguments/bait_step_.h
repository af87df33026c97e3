// The arguments of bait_step_, checked once for every device.
#pragma once

#include "torch/checks.h"

namespace lapal_ext {

constexpr const char* kOp = "bait_step_";

struct BaitStepArguments {
  ScalarType dtype;  // of everything but the pool
  int64_t n_rows, n_features;
};

inline BaitStepArguments check_bait_step(const Tensor& pool, const Tensor& u, const Tensor& u_offset, const Tensor& w,
                                         const Tensor& w_offset, const Tensor& fisher_norm, const Tensor& beta,
                                         const Tensor& curvature, const Tensor& h, const Tensor& q,
                                         const Tensor& taken) {
  check_dim(pool, 2, kOp, "pool");
  const BaitStepArguments call{u.scalar_type(), pool.size(0), pool.size(1)};
  const TensorChecks check(kOp, pool, "pool");
  check(u, {call.n_features}, call.dtype, "u");
  check(u_offset, {}, call.dtype, "u_offset");
  check(w, {call.n_features}, call.dtype, "w");
  check(w_offset, {}, call.dtype, "w_offset");
  check(fisher_norm, {}, call.dtype, "fisher_norm");
  check(beta, {}, call.dtype, "beta");
  check(curvature, {call.n_rows}, call.dtype, "curvature");
  check(h, {call.n_rows}, call.dtype, "h");
  check(q, {call.n_rows}, call.dtype, "q");
  check(taken, {call.n_rows}, ScalarType::Bool, "taken");
  return call;
}

}  // namespace lapal_ext
