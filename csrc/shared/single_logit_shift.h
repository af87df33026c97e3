// The loss of a softmax after one of its logits has changed by delta, from sums over all classes.
//
// Class k is removed from the sums and added again with its new logit, which is d above the largest of the other
// logits. Two sums over these other classes are needed, both relative to the largest of them: `remaining`, the sum of
// their exponentials without that of the largest, and `remaining_energy`, the sum of exponential times distance from
// the largest.
#pragma once

#include "shared/losses.h"

namespace lapal_ext {

// Up to this delta, exp(delta) is a factor that all classes share: the product of two partition functions is finite in
// float.
constexpr double kMaxFactorShift = 40.0;

namespace detail {

// log(1 + f) - f + f^2 / 2 for 1 + f in [sqrt(1/2), sqrt(2)); in float by the polynomial of Cephes, because a
// division would be slower.
LAPAL_HD float log_tail(float f) {
  float p = 7.0376836292e-2f;
  p = p * f - 1.1514610310e-1f;
  p = p * f + 1.1676998740e-1f;
  p = p * f - 1.2420140846e-1f;
  p = p * f + 1.4249322787e-1f;
  p = p * f - 1.6668057665e-1f;
  p = p * f + 2.0000714765e-1f;
  p = p * f - 2.4999993993e-1f;
  p = p * f + 3.3333331174e-1f;
  return p * f * (f * f);
}

LAPAL_HD double log_tail(double f) {
  const double s = f / (2.0 + f);
  return s * (0.5 * f * f + log_remainder(s * s));
}

}  // namespace detail

// exp_nonpositive() for x <= kMaxFactorShift.
template <class T>
LAPAL_HD T exp_or_zero(T x) {
  return x < detail::Number<T>::kSmallestExponent ? T(0) : exp_in_range(x);
}

// -log(1 - q) for q in [0, 1), with small relative error for small q. NaN stays NaN.
template <class T>
LAPAL_HD T minus_log1m(T q) {
  using N = detail::Number<T>;
  using Bits = typename N::Bits;
  constexpr int kRaise = 64;  // makes the exponent positive: before AVX-512, shifts of signed integers are slow
  const T u = T(1) - q;
  const T lost = (T(1) - u) - q;  // the rounding error of u, times u: it matters only where u is near one
  const Bits bits = detail::bit_cast<Bits>(u) + (Bits(kRaise) << N::kMantissa);
  const Bits exponent = (bits - N::kHalfRoot) >> N::kMantissa;
  const T f = detail::bit_cast<T>(Bits(bits - (exponent << N::kMantissa))) - T(1);
  const T n = detail::bit_cast<T>(Bits(exponent + detail::bit_cast<Bits>(N::kRounder))) - (N::kRounder + T(kRaise));
  const T tail = detail::log_tail(f) + (n * N::kLog2Low + lost);
  return ((T(0.5) * f * f - tail) - f) - n * N::kLog2High;
}

// Numerator and denominator of 1 - p_max. `factor` = exp(d) is finite.
template <class T>
struct Fraction {
  T numerator, denominator;
};

template <class T>
LAPAL_HD Fraction<T> shifted_error(T remaining, T factor) {
  return {remaining + (factor < T(1) ? factor : T(1)), (T(1) + remaining) + factor};
}

// Entropy. `factor` = exp(d) is finite.
template <class T>
LAPAL_HD T shifted_entropy(T remaining, T remaining_energy, T factor, T d) {
  const Fraction<T> error = shifted_error(remaining, factor);
  const T inverse = T(1) / error.denominator;
  // Distances are from the new largest logit: either all other classes are d further away, or class k is -d away.
  const T moved = d > T(0) ? T(1) + remaining : -factor;
  return minus_log1m(error.numerator * inverse) + (remaining_energy + d * moved) * inverse;
}

// Loss for a d of any size: no exponential is larger than one.
template <Loss kind, class T>
LAPAL_HD T shifted_loss(T remaining, T remaining_energy, T d) {
  const bool leads = d > T(0);
  const T grown = exp_nonpositive(leads ? -d : d);
  const T rest = leads ? grown * (T(1) + remaining) : remaining + grown;
  if constexpr (kind == Loss::expected_zero_one) {
    return rest / (T(1) + rest);
  } else {
    static_assert(kind == Loss::expected_cross_entropy, "a loss that has no formula for a shifted logit");
    const T distance = leads ? grown * (remaining_energy + d * (T(1) + remaining)) : remaining_energy - grown * d;
    return log1p_nonnegative(rest) + distance / (T(1) + rest);
  }
}

}  // namespace lapal_ext
