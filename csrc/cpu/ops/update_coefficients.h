// The recursion of update_coefficients, for kernels that call it on their own memory.
#pragma once

#include <cstdint>

#include "shared/likelihood.h"

namespace lapal_ext {

// M hypotheses of b observations each, and their results; all contiguous.
template <class T>
struct Hypotheses {
  int64_t count;
  int64_t batch_size;
  int64_t n_classes;
  const T* gram;           // [M, b, b]
  const T* logits;         // [M, b, C]
  const int64_t* targets;  // [M, b], in [0, C)
  T* coefficients;         // [M, b, C]
  T* triangle;             // [M, b, b]
  T* beta;                 // [M, b]
  T* weights;              // [M, b]
};

template <class T>
void find_coefficients(const Hypotheses<T>& hypotheses, const UpdateRule& rule);

}  // namespace lapal_ext
