// Utilities of one block of rows, from logits [C][lane].
#pragma once

#include "cpu/passes/softmax_block.h"
#include "cpu/simd/lanes.h"
#include "shared/utilities.h"

namespace lapal_ext {

// Utilities of one block, [lane].
template <Utility kind, bool kLinked, class T>
LAPAL_HD void utility_block(const T* logits, int64_t n_classes, const T* link, const T* scale, T* utilities) {
  constexpr int kL = kLanes<T>;
  alignas(kBlockBytes) T rest[kL];
  alignas(kBlockBytes) T moments[kL];
  alignas(kBlockBytes) T best[kL];
  find_largest(logits, n_classes, best);
  sum_losing_classes<needs_of(kind).moment, kLinked>(logits, n_classes, best, link, rest, moments);
#pragma omp simd
  for (int lane = 0; lane < kL; ++lane) {
    utilities[lane] = utility<kind>(rest[lane], moments[lane], scale[lane]);
  }
}

template <bool kLinked, class T>
LAPAL_HD void utility_block_of_kind(Utility kind, const T* logits, int64_t n_classes, const T* link, const T* scale,
                                    T* utilities) {
  switch (kind) {
    case Utility::margin:
      return utility_block<Utility::margin, kLinked>(logits, n_classes, link, scale, utilities);
    case Utility::entropy:
      return utility_block<Utility::entropy, kLinked>(logits, n_classes, link, scale, utilities);
    case Utility::least_confident:
      return utility_block<Utility::least_confident, kLinked>(logits, n_classes, link, scale, utilities);
    case Utility::gradient_norm:
      return utility_block<Utility::gradient_norm, kLinked>(logits, n_classes, link, scale, utilities);
    case Utility::variance:
      return;
  }
}

}  // namespace lapal_ext
