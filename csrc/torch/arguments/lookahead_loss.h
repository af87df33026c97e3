// The arguments of lookahead_loss, checked once for every device.
#pragma once

#include <optional>
#include <string>

#include "torch/checks.h"
#include "torch/choices.h"

namespace lapal_ext {

constexpr const char* kOp = "lookahead_loss";

struct LookaheadLossArguments {
  ScalarType dtype;
  int64_t n_classes, n_eval, n_rows, n_hypotheses, batch_size;
  Loss kind;
  bool linked;  // by the mean-field link, which needs triangle, beta and variance
};

// The indices in batches and targets are not looked at.
inline LookaheadLossArguments check_lookahead_loss(const Tensor& logits, const Tensor& columns, const Tensor& batches,
                                                   const Tensor& coefficients, const std::optional<Tensor>& triangle,
                                                   const std::optional<Tensor>& beta,
                                                   const std::optional<Tensor>& variance,
                                                   const std::optional<Tensor>& targets, const std::string& loss_kind) {
  check_dim(logits, 2, kOp, "logits");
  check_dim(columns, 2, kOp, "columns");
  check_dim(batches, 2, kOp, "batches");
  const LookaheadLossArguments call{logits.scalar_type(),
                                    logits.size(0),
                                    logits.size(1),
                                    columns.size(0),
                                    batches.size(0),
                                    batches.size(1),
                                    parse_loss(loss_kind, kOp),
                                    triangle.has_value() && beta.has_value() && variance.has_value()};
  STD_TORCH_CHECK(call.n_classes > 0, kOp, ": logits must have at least one class");
  const TensorChecks check(kOp, logits, "logits");
  check(columns, {call.n_rows, call.n_eval}, call.dtype, "columns");
  check(batches, {call.n_hypotheses, call.batch_size}, ScalarType::Long, "batches");
  check(coefficients, {call.n_hypotheses, call.batch_size, call.n_classes}, call.dtype, "coefficients");
  if (call.linked) {
    check(*triangle, {call.n_hypotheses, call.batch_size, call.batch_size}, call.dtype, "triangle");
    check(*beta, {call.n_hypotheses, call.batch_size}, call.dtype, "beta");
    check(*variance, {call.n_eval}, call.dtype, "variance");
  } else {
    STD_TORCH_CHECK(!triangle.has_value() && !beta.has_value() && !variance.has_value(), kOp,
                    ": triangle, beta and variance must be given together");
  }
  if (needs_of(call.kind).targets) {
    STD_TORCH_CHECK(targets.has_value(), kOp, ": targets must be given for loss '", loss_kind, "'");
    check(*targets, {call.n_eval}, ScalarType::Long, "targets");
  }
  return call;
}

}  // namespace lapal_ext
