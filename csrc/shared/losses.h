// The losses: their names, what they need, and their formulas.
//
// csrc/README.md, "Adding a loss", lists every place to change.
#pragma once

#include "shared/softmax_sums.h"

namespace lapal_ext {

enum class Loss { cross_entropy, zero_one, brier, expected_cross_entropy, expected_zero_one };

constexpr Loss kLosses[] = {Loss::cross_entropy, Loss::zero_one, Loss::brier, Loss::expected_cross_entropy,
                            Loss::expected_zero_one};

constexpr const char* name_of(Loss kind) {
  switch (kind) {
    case Loss::cross_entropy:
      return "cross_entropy";
    case Loss::zero_one:
      return "zero_one";
    case Loss::brier:
      return "brier";
    case Loss::expected_cross_entropy:
      return "expected_cross_entropy";
    case Loss::expected_zero_one:
      return "expected_zero_one";
  }
  return "";
}

// What a kernel must find for one evaluation point before it can call loss().
struct LossNeeds {
  bool targets;       // the label; a loss without it is an expectation under the predictive
  bool target_logit;  // the shifted logit of the label
  bool hit;           // whether the label is the winner
  bool sums;          // the sum of the exponentials of the losing classes
  Moment moment;
};

LAPAL_HD constexpr LossNeeds needs_of(Loss kind) {
  switch (kind) {
    case Loss::cross_entropy:
      return {true, true, false, true, Moment::none};
    case Loss::zero_one:
      return {true, false, true, false, Moment::none};
    case Loss::brier:
      return {true, true, true, true, Moment::squares};
    case Loss::expected_cross_entropy:
      return {false, false, false, true, Moment::energy};
    case Loss::expected_zero_one:
      return {false, false, false, true, Moment::none};
  }
  return {};
}

// Loss of one point. `target` is the shifted logit of the label, `hit` whether the label is the winner.
template <Loss kind, class T>
LAPAL_HD T loss(T rest, T moment, T target, bool hit) {
  if constexpr (kind == Loss::expected_zero_one) {
    return rest / (T(1) + rest);
  } else if constexpr (kind == Loss::expected_cross_entropy) {
    return entropy(rest, moment);
  } else if constexpr (kind == Loss::zero_one) {
    return hit ? T(0) : T(1);
  } else if constexpr (kind == Loss::cross_entropy) {
    return log1p_nonnegative(rest) - target;
  } else {
    static_assert(kind == Loss::brier, "a loss without a formula");
    const T inverse = T(1) / (T(1) + rest);
    const T others = moment * inverse * inverse;  // squared probabilities of all but the winner
    const T p_target = exp_nonpositive(target) * inverse;
    // With q = 1 - p_max: |p|^2 - 2 p_y + 1 is others + q^2 where the winner is right.
    const T wrong = rest * inverse;
    return hit ? others + wrong * wrong : others + inverse * inverse - T(2) * p_target + T(1);
  }
}

}  // namespace lapal_ext
