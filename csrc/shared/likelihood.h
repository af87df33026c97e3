// The softmax likelihood in single steps: the C++ mirror of lapal_ext/likelihood.py, with its names.
//
// Every function takes the values of one lane, a SIMD lane on the CPU or a thread of CUDA, so one file serves
// both. Everything is relative to the winning class, whose exponential is exactly one: callers find the
// winner in a first pass and leave it out of the second by its index, so 1 - p_max is a sum and never a
// difference.
//
// No function branches or calls the math library: a loop over lanes around any of them turns into vector
// code.
#pragma once

#include <cstdint>
#include <cstring>

// A kernel compiled for AVX-512 inlines nothing that was not forced into it: the rest would stay baseline
// code.
#if defined(__CUDACC__)
#define LAPAL_HD __host__ __device__ __forceinline__
#else
#define LAPAL_HD inline __attribute__((always_inline))
#endif

namespace lapal_ext {

enum class Curvature { categorical, gaussian };
enum class Step { line_search, newton };
enum class Loss { cross_entropy, zero_one, brier, expected_cross_entropy, expected_zero_one };
enum class Utility { margin, entropy, least_confident, variance, gradient_norm };

constexpr double kPsdSlack = 64.0;      // PSD_SLACK
constexpr double kResolution = 0x1p-7;  // RESOLUTION
constexpr double kTolerance = 1e-12;    // of the line search, relative to the step length
constexpr int kMaxIterations = 128;     // bisection alone needs 40 of them for kTolerance

// What a second pass must sum beside the exponentials of the losing classes themselves.
enum class Moment {
  none,
  largest,         // their maximum
  squares,         // of the exponentials
  lifted_squares,  // of the exponentials times kSquareLift, which keeps those of confident rows
  energy,          // exponential times shifted logit
};

LAPAL_HD constexpr Moment moment_of(Loss kind) {
  return kind == Loss::brier ? Moment::squares : kind == Loss::expected_cross_entropy ? Moment::energy : Moment::none;
}

LAPAL_HD constexpr Moment moment_of(Utility kind) {
  return kind == Utility::margin          ? Moment::largest
         : kind == Utility::entropy       ? Moment::energy
         : kind == Utility::gradient_norm ? Moment::lifted_squares
                                          : Moment::none;
}

LAPAL_HD constexpr bool needs_targets(Loss kind) {
  return kind == Loss::cross_entropy || kind == Loss::zero_one || kind == Loss::brier;
}

// Whether the loss asks if the label is the winner.
constexpr bool needs_hits(Loss kind) {
  return kind == Loss::zero_one || kind == Loss::brier;
}

namespace detail {

// The layout of a floating-point number, and the constants of its exponential and logarithm.
template <class T>
struct Number;

template <>
struct Number<float> {
  using Bits = uint32_t;
  static constexpr int kMantissa = 23;
  static constexpr Bits kHalfRoot = 0x3f3504f3;        // sqrt(1/2)
  static constexpr float kSmallestExponent = -87.33f;  // exp of it is just a normal number
  static constexpr float kSquareLift = 0x1p54f;        // its square times any number of classes is finite
  static constexpr float kRounder = 0x1.8p23f;
  static constexpr float kLog2High = 355.0f / 512.0f;  // few bits: n * kLog2High is exact
  static constexpr float kLog2Low = -2.12194440e-4f;
};

template <>
struct Number<double> {
  using Bits = uint64_t;
  static constexpr int kMantissa = 52;
  static constexpr Bits kHalfRoot = 0x3fe6a09e667f3bcd;
  static constexpr double kSmallestExponent = -708.39;
  static constexpr double kSquareLift = 0x1p450;
  static constexpr double kRounder = 0x1.8p52;
  static constexpr double kLog2High = 6.93147180369123816490e-01;
  static constexpr double kLog2Low = 1.90821492927058770002e-10;
};

template <class To, class From>
LAPAL_HD To bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From), "bit_cast needs two types of one size");
  To to;
  std::memcpy(&to, &from, sizeof(to));
  return to;
}

// (exp(r) - 1 - r) / r^2 for |r| <= log(2)/2: minimax, 0.13 ulp in float and 0.06 ulp in double. Even and odd powers
// apart: half the chain of dependent operations, which is what a loop of exponentials waits for.
LAPAL_HD float exp_remainder(float r, float square) {
  const float even = (0x1.6d113cp-10f * square + 0x1.555520p-5f) * square + 0.5f;
  const float odd = 0x1.120ba2p-7f * square + 0x1.5554dcp-3f;
  return odd * r + even;
}

LAPAL_HD double exp_remainder(double r, double square) {
  double even = 0x1.2891a8c1d838dp-22;
  even = even * square + 0x1.a019b8ef67c6cp-16;
  even = even * square + 0x1.6c16c17893833p-10;
  even = even * square + 0x1.5555555553d4fp-5;
  even = even * square + 0x1.0000000000001p-1;
  double odd = 0x1.af38d53857513p-26;
  odd = odd * square + 0x1.71de0d9c145d0p-19;
  odd = odd * square + 0x1.a01a01a7c8d47p-13;
  odd = odd * square + 0x1.11111111109adp-7;
  odd = odd * square + 0x1.5555555555556p-3;
  return odd * r + even;
}

// (log(1 + f) - 2 s) / s for s = f / (2 + f) and z = s^2, after FreeBSD's e_logf.c and e_log.c.
LAPAL_HD float log_remainder(float z) {
  float p = 0x1.f13c4cp-3f;
  p = p * z + 0x1.23d3dcp-2f;
  p = p * z + 0x1.999c26p-2f;
  p = p * z + 0x1.555554p-1f;
  return p * z;
}

LAPAL_HD double log_remainder(double z) {
  double p = 1.479819860511658591e-01;
  p = p * z + 1.531383769920937332e-01;
  p = p * z + 1.818357216161805012e-01;
  p = p * z + 2.222219843214978396e-01;
  p = p * z + 2.857142874366239149e-01;
  p = p * z + 3.999999999940941908e-01;
  p = p * z + 6.666666666666735130e-01;
  return p * z;
}

}  // namespace detail

// exp(x) within 2 ulp where x is not below the smallest exponent and exp(x) is finite; NaN stays NaN, and what comes of
// any other x is wrong.
template <class T>
LAPAL_HD T exp_in_range(T x) {
  using N = detail::Number<T>;
  using Bits = typename N::Bits;
  constexpr T kLog2e = T(1.44269504088896340736);
  const T rounded = x * kLog2e + N::kRounder;  // leaves n = round(x / log 2) in the lowest bits
  const T n = rounded - N::kRounder;
  const T r = (x - n * N::kLog2High) - n * N::kLog2Low;
  const T square = r * r;
  const T p = detail::exp_remainder(r, square) * square + (T(1) + r);
  // p 2^n: what lies above n in the bits is shifted out, and a negative n borrows from the exponent of p.
  const Bits exponent = detail::bit_cast<Bits>(rounded) << N::kMantissa;
  return detail::bit_cast<T>(Bits(detail::bit_cast<Bits>(p) + exponent));
}

// exp(x) for x <= 0 within 2 ulp, zero where it would not be a normal number: those are slow to compute with, and
// nothing that is added to one sees them. NaN stays NaN.
template <class T>
LAPAL_HD T exp_nonpositive(T x) {
  return x < detail::Number<T>::kSmallestExponent ? T(0) : exp_in_range(x);
}

// The exponential of a class that loses, zero for the winner: one condition, so that vector code needs one mask.
template <class T>
LAPAL_HD T losing_term(T shifted, bool loses) {
  const bool counts = loses & !(shifted < detail::Number<T>::kSmallestExponent);
  return counts ? exp_in_range(shifted) : T(0);
}

// log(1 + x) for x >= 0 within 2 ulp; NaN stays NaN.
template <class T>
LAPAL_HD T log1p_nonnegative(T x) {
  using N = detail::Number<T>;
  using Bits = typename N::Bits;
  const T u = T(1) + x;
  const T lost = (x - (u - T(1))) / u;  // what rounding to u dropped
  const Bits bits = detail::bit_cast<Bits>(u);
  const Bits exponent = (bits - N::kHalfRoot) >> N::kMantissa;  // of u = m 2^exponent, m in [sqrt(1/2), sqrt(2))
  const T f = detail::bit_cast<T>(Bits(bits - (exponent << N::kMantissa))) - T(1);
  const T n = detail::bit_cast<T>(Bits(exponent + detail::bit_cast<Bits>(N::kRounder))) - N::kRounder;
  const T s = f / (T(2) + f);
  const T half_square = T(0.5) * f * f;
  const T tail = s * (half_square + detail::log_remainder(s * s)) + (n * N::kLog2Low + lost);
  return n * N::kLog2High - ((half_square - tail) - f);
}

LAPAL_HD float square_root(float x) {
  return __builtin_sqrtf(x);
}

LAPAL_HD double square_root(double x) {
  return __builtin_sqrt(x);
}

// Factor on the logits under the mean-field link: 1 / sqrt(1 + kappa v), where a negative v counts as zero.
template <class T>
LAPAL_HD T mean_field(T variance, T kappa) {
  return T(1) / square_root(T(1) + kappa * (variance < T(0) ? T(0) : variance));
}

// p_max (1 - p_max), from the sum of the losing exponentials.
template <class T>
LAPAL_HD T curvature_weight(T rest) {
  return rest / ((T(1) + rest) * (T(1) + rest));
}

// One losing class: its exponential `other` = exp(shifted) joins the second sum.
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
    return sum;
  }
}

// The same for `count` losing classes whose exponential is one.
template <Moment moment, class T>
LAPAL_HD T add_ties(T sum, T count) {
  if constexpr (moment == Moment::largest) {
    return count > T(0) ? T(1) : sum;
  } else if constexpr (moment == Moment::squares) {
    return sum + count;
  } else if constexpr (moment == Moment::lifted_squares) {
    return sum + count * (detail::Number<T>::kSquareLift * detail::Number<T>::kSquareLift);
  } else {
    return sum;
  }
}

template <class T>
LAPAL_HD T entropy(T rest, T energy) {
  return log1p_nonnegative(rest) - energy / (T(1) + rest);
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
    const T inverse = T(1) / (T(1) + rest);
    const T others = moment * inverse * inverse;  // squared probabilities of all but the winner
    const T p_target = exp_nonpositive(target) * inverse;
    // With q = 1 - p_max: |p|^2 - 2 p_y + 1 is others + q^2 where the winner is right.
    const T wrong = rest * inverse;
    return hit ? others + wrong * wrong : others + inverse * inverse - T(2) * p_target + T(1);
  }
}

// Utility of one row. `scale` is |phi|, for gradient_norm alone.
template <Utility kind, class T>
LAPAL_HD T utility(T rest, T moment, T scale) {
  if constexpr (kind == Utility::margin) {
    return (rest + moment) / (T(1) + rest);
  } else if constexpr (kind == Utility::entropy) {
    return entropy(rest, moment);
  } else if constexpr (kind == Utility::least_confident) {
    return rest / (T(1) + rest);
  } else {
    static_assert(kind == Utility::gradient_norm, "variance is no function of the logits");
    // The rest is taken out of the norm: its square is below the smallest float on confident rows.
    const T lifted = rest * detail::Number<T>::kSquareLift;
    const T divisor = lifted > T(0) ? lifted : T(1);
    return rest * square_root(T(1) + moment / divisor / divisor) / (T(1) + rest) * scale;
  }
}

}  // namespace lapal_ext
