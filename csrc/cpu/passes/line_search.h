// The step length of one observation in float64, with the classes of one row in lanes.
//
// Rows are padded to full blocks: row_size classes, of which those from n_classes on have logits of -inf. `terms` has
// room for one row.
#pragma once

#include <cstdint>

#include "cpu/simd/lanes.h"
#include "shared/line_search_bracket.h"

namespace lapal_ext {

// The first class with the largest value.
LAPAL_HD int64_t argmax(const double* values, int64_t size) {
  const double largest = largest_in_row(values, size);
  for (int64_t k = 0; k < size; ++k) {
    if (values[k] == largest) {
      return k;
    }
  }
  return 0;  // reached if all values are NaN
}

// Writes the exponentials relative to the winner to `terms`, with zero for the winner, and returns their sum.
LAPAL_HD double losing_terms(const double* logits, int64_t row_size, int64_t winner, double* terms) {
  const double best = logits[winner];
#pragma omp simd
  for (int64_t k = 0; k < row_size; ++k) {
    terms[k] = exp_nonpositive(logits[k] - best);
  }
  terms[winner] = 0.0;
  double rest = 0.0;
#pragma omp simd reduction(+ : rest)
  for (int64_t k = 0; k < row_size; ++k) {
    rest += terms[k];
  }
  return rest;
}

// r = e_y - softmax(z), and zero in the padding. 1 - p_y is computed as the sum of the other probabilities.
LAPAL_HD void residual(const double* logits, int64_t n_classes, int64_t row_size, int64_t target, double* terms,
                       double* r) {
  const int64_t winner = argmax(logits, n_classes);
  const double inverse = 1.0 / (1.0 + losing_terms(logits, row_size, winner, terms));
  terms[winner] = 1.0;
  terms[target] = 0.0;
  double others = 0.0;
#pragma omp simd reduction(+ : others)
  for (int64_t k = 0; k < row_size; ++k) {
    r[k] = -(terms[k] * inverse);
    others += terms[k];
  }
  r[target] = others * inverse;
}

// Root in [0, gamma] of r . (softmax(z + a v r) - e_y) + a |r|^2 / gamma; lapal_ext/line_search.py says why it is
// safeguarded. The product is the mean of r_k - r_y, which is never positive, so it has no cancellation even if the
// model is right.
LAPAL_HD double line_search(const double* logits, double variance, const double* r, int64_t row_size, int64_t target,
                            double gamma, double* terms) {
  if (gamma == 0.0) {
    return 0.0;
  }
  const double r_target = r[target];
  double norm = 0.0;
#pragma omp simd reduction(+ : norm)
  for (int64_t k = 0; k < row_size; ++k) {
    norm += r[k] * r[k];
  }
  LineSearchBracket bracket(gamma);
  for (int iteration = 0; iteration < kMaxIterations; ++iteration) {
    const double reach = bracket.a * variance;
#pragma omp simd
    for (int64_t k = 0; k < row_size; ++k) {
      terms[k] = logits[k] + reach * r[k];
    }
    const double best = largest_in_row(terms, row_size);
    double total = 0.0, product = 0.0;
#pragma omp simd reduction(+ : total, product)
    for (int64_t k = 0; k < row_size; ++k) {
      const double term = exp_nonpositive(terms[k] - best);
      terms[k] = term;
      total += term;
      product += term * (r[k] - r_target);
    }
    const double mean = product / total;
    double spread = 0.0;
#pragma omp simd reduction(+ : spread)
    for (int64_t k = 0; k < row_size; ++k) {
      const double gap = r[k] - r_target;
      spread += terms[k] * ((gap - mean) * (gap - mean));
    }
    const double slope = mean + bracket.a * norm / gamma;
    const double steepness = variance * (spread / total) + norm / gamma;
    if (bracket.advance(slope, steepness)) {
      break;
    }
  }
  return bracket.a;
}

}  // namespace lapal_ext
