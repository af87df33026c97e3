// What a utility needs beside the logits, for the ops that compute one.
#pragma once

#include <optional>

#include "shared/utilities.h"
#include "torch/checks.h"

namespace lapal_ext {

inline void check_utility_inputs(const TensorChecks& check, Utility kind, int64_t n_rows, ScalarType dtype,
                                 const std::optional<Tensor>& variance, const std::optional<Tensor>& scale,
                                 const char* op) {
  const UtilityNeeds needs = needs_of(kind);
  STD_TORCH_CHECK(!needs.variance || variance.has_value(), op, ": utility '", name_of(kind), "' needs variance");
  STD_TORCH_CHECK(!needs.scale || scale.has_value(), op, ": utility '", name_of(kind), "' needs scale");
  if (variance.has_value()) {
    check(*variance, {n_rows}, dtype, "variance");
  }
  if (needs.scale) {
    check(*scale, {n_rows}, dtype, "scale");
  }
}

}  // namespace lapal_ext
