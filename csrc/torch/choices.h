// The names that Python gives its choices, as the enumerations of shared/likelihood.h.
#pragma once

#include <torch/headeronly/util/Exception.h>

#include <string>

#include "shared/likelihood.h"

namespace lapal_ext {

inline Step parse_step(const std::string& step, const char* op) {
  STD_TORCH_CHECK(step == "line_search" || step == "newton", op, ": unknown step '", step, "'");
  return step == "newton" ? Step::newton : Step::line_search;
}

inline Curvature parse_curvature(const std::string& curvature, const char* op) {
  STD_TORCH_CHECK(curvature == "categorical" || curvature == "gaussian", op, ": unknown curvature '", curvature, "'");
  return curvature == "gaussian" ? Curvature::gaussian : Curvature::categorical;
}

inline Loss parse_loss(const std::string& kind, const char* op) {
  if (kind == "cross_entropy") {
    return Loss::cross_entropy;
  }
  if (kind == "zero_one") {
    return Loss::zero_one;
  }
  if (kind == "brier") {
    return Loss::brier;
  }
  if (kind == "expected_cross_entropy") {
    return Loss::expected_cross_entropy;
  }
  STD_TORCH_CHECK(kind == "expected_zero_one", op, ": unknown loss '", kind, "'");
  return Loss::expected_zero_one;
}

inline Utility parse_utility(const std::string& kind, const char* op) {
  if (kind == "margin") {
    return Utility::margin;
  }
  if (kind == "entropy") {
    return Utility::entropy;
  }
  if (kind == "least_confident") {
    return Utility::least_confident;
  }
  if (kind == "variance") {
    return Utility::variance;
  }
  STD_TORCH_CHECK(kind == "gradient_norm", op, ": unknown utility '", kind, "'");
  return Utility::gradient_norm;
}

}  // namespace lapal_ext
