// The utilities of one row: their names, what they need, and their formulas.
//
// csrc/README.md, "Adding a utility", lists every place to change.
#pragma once

#include "shared/softmax_sums.h"

namespace lapal_ext {

enum class Utility { margin, entropy, least_confident, variance, gradient_norm };

constexpr Utility kUtilities[] = {Utility::margin, Utility::entropy, Utility::least_confident, Utility::variance,
                                  Utility::gradient_norm};

constexpr const char* name_of(Utility kind) {
  switch (kind) {
    case Utility::margin:
      return "margin";
    case Utility::entropy:
      return "entropy";
    case Utility::least_confident:
      return "least_confident";
    case Utility::variance:
      return "variance";
    case Utility::gradient_norm:
      return "gradient_norm";
  }
  return "";
}

// What a kernel must have for one row.
struct UtilityNeeds {
  bool logits;
  bool variance;  // as the utility itself, not for the link
  bool scale;     // the norm of the features
  Moment moment;
};

LAPAL_HD constexpr UtilityNeeds needs_of(Utility kind) {
  switch (kind) {
    case Utility::margin:
      return {true, false, false, Moment::largest};
    case Utility::entropy:
      return {true, false, false, Moment::energy};
    case Utility::least_confident:
      return {true, false, false, Moment::none};
    case Utility::variance:
      return {false, true, false, Moment::none};
    case Utility::gradient_norm:
      return {true, false, true, Moment::lifted_squares};
  }
  return {};
}

// Utility of one row from its logits. `scale` is |phi|, for gradient_norm alone.
template <Utility kind, class T>
LAPAL_HD T utility(T rest, T moment, T scale) {
  if constexpr (kind == Utility::margin) {
    return (rest + moment) / (T(1) + rest);
  } else if constexpr (kind == Utility::entropy) {
    return entropy(rest, moment);
  } else if constexpr (kind == Utility::least_confident) {
    return rest / (T(1) + rest);
  } else {
    static_assert(kind == Utility::gradient_norm, "a utility without a formula; variance is no function of the logits");
    // The rest is a factor outside of the norm: its square would underflow on confident rows.
    const T lifted = rest * detail::Number<T>::kSquareLift;
    const T divisor = lifted > T(0) ? lifted : T(1);
    return rest * square_root(T(1) + moment / divisor / divisor) / (T(1) + rest) * scale;
  }
}

}  // namespace lapal_ext
