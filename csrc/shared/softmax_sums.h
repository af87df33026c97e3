// The sums over classes that losses and utilities need.
//
// The winner is the class with the largest logit. All sums are relative to it: its exponential is exactly one and is
// left out, so 1 - p_max = rest / (1 + rest) is a sum and never a difference. `rest` is the sum of the exponentials of
// all other classes; a second sum, the moment, depends on the loss or utility.
#pragma once

#include "shared/exponential.h"

namespace lapal_ext {

// The second sum over the losing classes.
enum class Moment {
  none,
  largest,         // their maximum
  squares,         // of the exponentials
  lifted_squares,  // of the exponentials times kSquareLift, so that those of confident rows do not vanish
  energy,          // exponential times shifted logit
};

// Adds one losing class with exponential `other` = exp(shifted) to the moment.
template <Moment moment, class T>
LAPAL_HD T add_moment(T sum, T other, T shifted) {
  if constexpr (moment == Moment::largest) {
    return other > sum ? other : sum;
  } else if constexpr (moment == Moment::squares) {
    return sum + other * other;
  } else if constexpr (moment == Moment::lifted_squares) {
    const T lifted = other * detail::Number<T>::kSquareLift;
    return sum + lifted * lifted;
  } else if constexpr (moment == Moment::energy) {
    return sum + other * shifted;
  } else {
    static_assert(moment == Moment::none, "a moment without a formula");
    return sum;
  }
}

// Adds `count` losing classes that tie with the winner: their exponential is one.
template <Moment moment, class T>
LAPAL_HD T add_ties(T sum, T count) {
  if constexpr (moment == Moment::largest) {
    return count > T(0) ? T(1) : sum;
  } else if constexpr (moment == Moment::squares) {
    return sum + count;
  } else if constexpr (moment == Moment::lifted_squares) {
    return sum + count * (detail::Number<T>::kSquareLift * detail::Number<T>::kSquareLift);
  } else {
    static_assert(moment == Moment::energy || moment == Moment::none, "a moment without a formula");
    return sum;
  }
}

// Entropy of the softmax, from the moment `energy`.
template <class T>
LAPAL_HD T entropy(T rest, T energy) {
  return log1p_nonnegative(rest) - energy / (T(1) + rest);
}

}  // namespace lapal_ext
