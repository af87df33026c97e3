// The softmax likelihood: links, curvatures and step rules, with the names of lapal_ext/likelihood.py.
#pragma once

#include "shared/softmax_sums.h"

namespace lapal_ext {

// The weight of an observation in the precision: p_max (1 - p_max), or one.
enum class Curvature { categorical, gaussian };

// The rule for the step length of one observation.
enum class Step { line_search, newton };

constexpr Curvature kCurvatures[] = {Curvature::categorical, Curvature::gaussian};
constexpr Step kSteps[] = {Step::line_search, Step::newton};

constexpr const char* name_of(Curvature curvature) {
  switch (curvature) {
    case Curvature::categorical:
      return "categorical";
    case Curvature::gaussian:
      return "gaussian";
  }
  return "";
}

constexpr const char* name_of(Step step) {
  switch (step) {
    case Step::line_search:
      return "line_search";
    case Step::newton:
      return "newton";
  }
  return "";
}

// How one label changes the posterior.
struct UpdateRule {
  double gamma;
  Step step;
  Curvature curvature;
};

constexpr double kPsdSlack = 64.0;      // PSD_SLACK
constexpr double kResolution = 0x1p-7;  // RESOLUTION
constexpr double kTolerance = 1e-12;    // of the line search, relative to the step length
constexpr int kMaxIterations = 128;     // bisection alone needs 40 of them for kTolerance

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

}  // namespace lapal_ext
