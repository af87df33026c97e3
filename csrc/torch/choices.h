// The strings that Python uses for losses, utilities, steps and curvatures, as the enumerations of shared/.
#pragma once

#include <torch/headeronly/util/Exception.h>

#include <string>

#include "shared/likelihood.h"
#include "shared/losses.h"
#include "shared/utilities.h"

namespace lapal_ext {

namespace detail {

// The one of `kinds` with that name; an error if there is none.
template <class Kind, size_t kCount>
Kind parse(const Kind (&kinds)[kCount], const std::string& name, const char* what, const char* op) {
  for (const Kind kind : kinds) {
    if (name == name_of(kind)) {
      return kind;
    }
  }
  STD_TORCH_CHECK(false, op, ": unknown ", what, " '", name, "'");
}

}  // namespace detail

inline UpdateRule parse_update_rule(double gamma, const std::string& step, const std::string& curvature,
                                    const char* op) {
  return {gamma, detail::parse(kSteps, step, "step", op), detail::parse(kCurvatures, curvature, "curvature", op)};
}

inline Loss parse_loss(const std::string& name, const char* op) {
  return detail::parse(kLosses, name, "loss", op);
}

inline Utility parse_utility(const std::string& name, const char* op) {
  return detail::parse(kUtilities, name, "utility", op);
}

}  // namespace lapal_ext
