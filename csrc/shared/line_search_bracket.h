// One iteration of the line search of an observation, from the slope and the steepness at the present step length. The
// CPU and CUDA sum these over the classes in their own ways. lapal_ext/line_search.py says why Newton's step is
// safeguarded.
#pragma once

#include "shared/likelihood.h"

namespace lapal_ext {

// The root in [0, gamma] of a slope that increases with the step length a.
struct LineSearchBracket {
  double low, high, a, last_move;

  LAPAL_HD explicit LineSearchBracket(double gamma) : low(0.0), high(gamma), a(gamma), last_move(gamma) {}

  // Moves a and returns whether it has converged. A slope that is NaN makes a NaN.
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
