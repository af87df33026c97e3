// What a softmax loses once one of its classes has moved, from sums over all of its classes.
//
// Class k leaves the softmax, and returns with its logit moved by delta: d above the largest of those that remained.
// These are relative to that largest: the sum of their exponentials without its own one (`remaining`), and the sum of
// exponential times distance from it (`remaining_energy`). Shared by CPU lanes and CUDA threads, like likelihood.h.
#pragma once

#include "shared/losses.h"

namespace lapal_ext {

// Up to here exp(delta) may be taken as a factor, so that one exponential serves all classes: in float, the product of
// two partition functions still is finite.
constexpr double kMaxFactorShift = 40.0;

namespace detail {

// log(1 + f) - f + f^2 / 2 for 1 + f in [sqrt(1/2), sqrt(2)); in float the polynomial of Cephes, since a division
// costs more.
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

// exp(x) for x <= kMaxFactorShift, as exp_nonpositive.
template <class T>
LAPAL_HD T exp_or_zero(T x) {
  return x < detail::Number<T>::kSmallestExponent ? T(0) : exp_in_range(x);
}

// -log(1 - q) for q in [0, 1), to relative accuracy where q is small; NaN stays NaN.
template <class T>
LAPAL_HD T minus_log1m(T q) {
  using N = detail::Number<T>;
  using Bits = typename N::Bits;
  constexpr int kRaise = 64;  // times 2^64 the exponent is positive: shifts of signed integers are slow before AVX-512
  const T u = T(1) - q;
  const T lost = (T(1) - u) - q;  // what rounding to u dropped, times u; where u is not near one it does not count
  const Bits bits = detail::bit_cast<Bits>(u) + (Bits(kRaise) << N::kMantissa);
  const Bits exponent = (bits - N::kHalfRoot) >> N::kMantissa;
  const T f = detail::bit_cast<T>(Bits(bits - (exponent << N::kMantissa))) - T(1);
  const T n = detail::bit_cast<T>(Bits(exponent + detail::bit_cast<Bits>(N::kRounder))) - (N::kRounder + T(kRaise));
  const T tail = detail::log_tail(f) + (n * N::kLog2Low + lost);
  return ((T(0.5) * f * f - tail) - f) - n * N::kLog2High;
}

// Numerator and denominator of 1 - p_max, where `factor` = exp(d) is finite.
template <class T>
struct Fraction {
  T numerator, denominator;
};

template <class T>
LAPAL_HD Fraction<T> shifted_error(T remaining, T factor) {
  return {remaining + (factor < T(1) ? factor : T(1)), (T(1) + remaining) + factor};
}

// Entropy, where `factor` = exp(d) is finite.
template <class T>
LAPAL_HD T shifted_entropy(T remaining, T remaining_energy, T factor, T d) {
  const Fraction<T> error = shifted_error(remaining, factor);
  const T inverse = T(1) / error.denominator;
  // Distances count from the new largest: either all that remained is d further away, or class k is -d away.
  const T moved = d > T(0) ? T(1) + remaining : -factor;
  return minus_log1m(error.numerator * inverse) + (remaining_energy + d * moved) * inverse;
}

// Loss for a d of any size: its exponential is at most one.
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
