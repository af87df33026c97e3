// The arguments of selection_step_, checked once for every device.
#pragma once

#include <optional>
#include <string>

#include "torch/arguments/utility_inputs.h"
#include "torch/checks.h"
#include "torch/choices.h"

namespace lapal_ext {

constexpr const char* kOp = "selection_step_";

struct SelectionStepArguments {
  ScalarType dtype;  // of everything but the pool
  int64_t n_rows, n_features, n_classes;
  Utility kind;
};

inline SelectionStepArguments check_selection_step(const Tensor& pool, const Tensor& u, const Tensor& offset,
                                                   const Tensor& g, const Tensor& beta, const Tensor& logits,
                                                   const std::optional<Tensor>& variance, const Tensor& taken,
                                                   const std::optional<Tensor>& scale, const std::string& kind) {
  check_dim(pool, 2, kOp, "pool");
  check_dim(logits, 2, kOp, "logits");
  const SelectionStepArguments call{logits.scalar_type(), pool.size(0), pool.size(1), logits.size(1),
                                    parse_utility(kind, kOp)};
  const TensorChecks check(kOp, pool, "pool");
  check(logits, {call.n_rows, call.n_classes}, call.dtype, "logits");
  check(u, {call.n_features}, call.dtype, "u");
  check(offset, {}, call.dtype, "offset");
  check(g, {call.n_classes}, call.dtype, "g");
  check(beta, {}, call.dtype, "beta");
  check(taken, {call.n_rows}, ScalarType::Bool, "taken");
  STD_TORCH_CHECK(call.n_classes > 0, kOp, ": logits must have at least one class");
  check_utility_inputs(check, call.kind, call.n_rows, call.dtype, variance, scale, kOp);
  return call;
}

}  // namespace lapal_ext
