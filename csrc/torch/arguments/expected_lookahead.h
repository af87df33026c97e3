// The arguments of expected_lookahead, checked once for every device.
#pragma once

#include <string>

#include "torch/checks.h"
#include "torch/choices.h"

namespace lapal_ext {

constexpr const char* kOp = "expected_lookahead";

struct ExpectedLookaheadArguments {
  ScalarType dtype;
  int64_t n_classes, n_eval, n_candidates;
  Loss kind;
};

inline ExpectedLookaheadArguments check_expected_lookahead(const Tensor& logits, const Tensor& columns,
                                                           const Tensor& step_lengths, const Tensor& probabilities,
                                                           const std::string& loss_kind) {
  check_dim(logits, 2, kOp, "logits");
  check_dim(columns, 2, kOp, "columns");
  const ExpectedLookaheadArguments call{logits.scalar_type(), logits.size(0), logits.size(1), columns.size(0),
                                        parse_loss(loss_kind, kOp)};
  STD_TORCH_CHECK(!needs_of(call.kind).targets, kOp, ": loss '", loss_kind, "' needs targets");
  STD_TORCH_CHECK(call.n_classes > 0, kOp, ": logits must have at least one class");
  const TensorChecks check(kOp, logits, "logits");
  check(columns, {call.n_candidates, call.n_eval}, call.dtype, "columns");
  check(step_lengths, {call.n_candidates}, call.dtype, "step_lengths");
  check(probabilities, {call.n_candidates, call.n_classes}, call.dtype, "probabilities");
  return call;
}

}  // namespace lapal_ext
