// How the line search of one observation goes on, once slope and steepness at its present step length are known.
// Shared by CPU and CUDA, which sum these over the classes each in its own way; see likelihood.py for why Newton's step
// is safeguarded.
#pragma once

#include "shared/likelihood.h"

namespace lapal_ext {

// The root in [0, gamma] of a slope that increases with the step length a.
struct LineSearchBracket {
  double low, high, a, last_move;

  LAPAL_HD explicit LineSearchBracket(double gamma) : low(0.0), high(gamma), a(gamma), last_move(gamma) {}

  // Moves a; returns whether it has converged. A slope that is not a number makes a one.
  LAPAL_HD bool advance(double slope, double steepness) {
    if (slope != slope) {
      a = slope;
      return true;
    }
    if (slope == 0.0) {
      return true;
    }
    if (slope > 0.0) {
      high = a;
    } else {
      low = a;
    }
    const double newton = a - slope / steepness;
    const double move = newton < a ? a - newton : newton - a;
    const bool safe = newton > low && newton < high && move <= 0.5 * last_move;
    const double proposal = safe ? newton : 0.5 * (low + high);
    last_move = proposal < a ? a - proposal : proposal - a;
    const bool converged = last_move <= kTolerance * a || high - low <= kTolerance * high;
    a = proposal;
    return converged;
  }
};

}  // namespace lapal_ext
