// The passes of lookahead_loss over one block of evaluation points, with points in lanes: class-major, [C][lane].
#pragma once

#include <algorithm>

#include "cpu/passes/evaluation_tiles.h"
#include "cpu/passes/softmax_block.h"
#include "cpu/simd/lanes.h"
#include "shared/likelihood.h"
#include "shared/losses.h"

namespace lapal_ext {

constexpr int kGroup = 8;         // classes in registers; AVX2 needs two registers for 16 lanes
constexpr int kBlocksAtOnce = 2;  // at most

// One tile of points, and the data of the hypotheses, which is the same for all tiles.
template <class T>
struct LookaheadTile {
  int64_t points;               // a multiple of the lanes, except in the last tile
  T* logits;                    // [block][C][lane]; a kernel may change them
  const T* columns;             // of the tile's first point
  const T* variance;            // [point], null for the plugin link
  const LaneIndex<T>* targets;  // [point], offsets label * lanes + lane; null for the expected losses
  const int64_t* slots;         // [M, b], offsets of the columns
  const T* coefficients;        // [M, b, C]
  const T* triangle;            // [M, b, b]
  const T* beta;                // [M, b]
  int64_t batch_size;
  int64_t n_classes;
  Loss kind;
  T kappa;
  T* buffer;  // lookahead_buffer_size() numbers
};

// Size of the buffer for the moved logits, z of the link, and scaled coefficients. Not every kernel needs all three.
template <class T>
int64_t lookahead_buffer_size(int64_t n_classes, int64_t batch_size) {
  return (kBlocksAtOnce * n_classes + batch_size) * kLanes<T> + batch_size * n_classes;
}

// The sums of the softmax of each point of a tile, and what else its loss needs.
template <class T>
struct Softmaxes {
  alignas(kBlockBytes) T rest[kMaxTilePoints];
  alignas(kBlockBytes) T moments[kMaxTilePoints];
  alignas(kBlockBytes) T targets[kMaxTilePoints];             // shifted logit of the label
  alignas(kBlockBytes) LaneIndex<T> winners[kMaxTilePoints];  // as offsets, like LookaheadTile::targets; for hits
};

// moved[k][lane] = logits[k][lane] + sum_t columns_t[lane] H[t, k] for kClasses classes from `first`; best[lane] is
// raised to the largest of them. The loop runs for at least one t: around a loop that may not run, the compiler would
// keep the sums in memory.
template <int kClasses, class T>
LAPAL_HD void move_group(const LookaheadTile<T>& tile, const T* logits, const T* columns, const int64_t* slots,
                         const T* coefficients, int64_t first, T* moved, T* best) {
  constexpr int kL = kLanes<T>;
  T sums[kClasses][kL];
  LAPAL_UNROLL
  for (int k = 0; k < kClasses; ++k) {
#pragma omp simd
    for (int lane = 0; lane < kL; ++lane) {
      sums[k][lane] = logits[(first + k) * kL + lane];
    }
  }
  int64_t t = 0;
  do {
    const T* column = columns + slots[t];
    const T* weights = coefficients + t * tile.n_classes + first;
    LAPAL_UNROLL
    for (int k = 0; k < kClasses; ++k) {
      const T weight = weights[k];
#pragma omp simd
      for (int lane = 0; lane < kL; ++lane) {
        sums[k][lane] += column[lane] * weight;
      }
    }
  } while (++t < tile.batch_size);
  LAPAL_UNROLL
  for (int k = 0; k < kClasses; ++k) {
#pragma omp simd
    for (int lane = 0; lane < kL; ++lane) {
      moved[(first + k) * kL + lane] = sums[k][lane];
      best[lane] = sums[k][lane] > best[lane] ? sums[k][lane] : best[lane];
    }
  }
}

// Logits of one block after the hypothesis, and the largest of them. Groups are as equal as possible, because a short
// group has too few independent multiply-adds.
template <class T>
LAPAL_HD void move_block(const LookaheadTile<T>& tile, const T* logits, const T* columns, const int64_t* slots,
                         const T* coefficients, T* moved, T* best) {
  if (tile.batch_size == 0) {
    std::copy(logits, logits + tile.n_classes * kLanes<T>, moved);
    find_largest(logits, tile.n_classes, best);
    return;
  }
  fill_lanes(T(-__builtin_inff()), best);
  const int64_t n_groups = (tile.n_classes + kGroup - 1) / kGroup;
  const int64_t small = tile.n_classes / n_groups;
  const int64_t n_large = tile.n_classes % n_groups;
  int64_t first = 0;
  for (int64_t group = 0; group < n_groups; ++group) {
    const int64_t size = small + (group < n_large);
    switch (size) {
      case 1:
        move_group<1>(tile, logits, columns, slots, coefficients, first, moved, best);
        break;
      case 2:
        move_group<2>(tile, logits, columns, slots, coefficients, first, moved, best);
        break;
      case 3:
        move_group<3>(tile, logits, columns, slots, coefficients, first, moved, best);
        break;
      case 4:
        move_group<4>(tile, logits, columns, slots, coefficients, first, moved, best);
        break;
      case 5:
        move_group<5>(tile, logits, columns, slots, coefficients, first, moved, best);
        break;
      case 6:
        move_group<6>(tile, logits, columns, slots, coefficients, first, moved, best);
        break;
      case 7:
        move_group<7>(tile, logits, columns, slots, coefficients, first, moved, best);
        break;
      default:
        move_group<8>(tile, logits, columns, slots, coefficients, first, moved, best);
    }
    first += size;
  }
}

// Factor of the mean-field link, with z from a forward substitution in each lane.
template <class T>
LAPAL_HD void link_block(const LookaheadTile<T>& tile, const T* columns, const int64_t* slots, const T* triangle,
                         const T* beta, const T* variance, T* z, T* link) {
  constexpr int kL = kLanes<T>;
  alignas(kBlockBytes) T left[kL];
#pragma omp simd
  for (int lane = 0; lane < kL; ++lane) {
    left[lane] = variance[lane];
  }
  for (int64_t t = 0; t < tile.batch_size; ++t) {
    alignas(kBlockBytes) T sum[kL];
    const T* column = columns + slots[t];
#pragma omp simd
    for (int lane = 0; lane < kL; ++lane) {
      sum[lane] = column[lane];
    }
    for (int64_t s = 0; s < t; ++s) {
      const T weight = triangle[t * tile.batch_size + s];
#pragma omp simd
      for (int lane = 0; lane < kL; ++lane) {
        sum[lane] -= weight * z[s * kL + lane];
      }
    }
    const T shrinkage = beta[t];
#pragma omp simd
    for (int lane = 0; lane < kL; ++lane) {
      z[t * kL + lane] = sum[lane];
      left[lane] -= shrinkage * (sum[lane] * sum[lane]);
    }
  }
#pragma omp simd
  for (int lane = 0; lane < kL; ++lane) {
    link[lane] = mean_field(left[lane], tile.kappa);
  }
}

// What the loss needs of the labels of one block: their shifted logits times `factor`, and the winners.
template <class T>
LAPAL_HD void take_labels(const LookaheadTile<T>& tile, const T* moved, const T* best, const T* factor, int64_t start,
                          Softmaxes<T>& softmaxes) {
  constexpr int kL = kLanes<T>;
  if (tile.targets == nullptr) {
    return;
  }
  if (needs_of(tile.kind).target_logit) {
    const LaneIndex<T>* targets = tile.targets + start;
    T* shifted = softmaxes.targets + start;
    for (int lane = 0; lane < kL; ++lane) {
      shifted[lane] = moved[targets[lane]];
    }
#pragma omp simd
    for (int lane = 0; lane < kL; ++lane) {
      shifted[lane] = (shifted[lane] - best[lane]) * factor[lane];
    }
  }
  if (needs_of(tile.kind).hit) {
    LaneIndex<T>* winners = softmaxes.winners + start;
    find_winner(moved, tile.n_classes, best, winners);
#pragma omp simd
    for (int lane = 0; lane < kL; ++lane) {
      winners[lane] = winners[lane] * kL + lane;
    }
  }
}

template <bool kLinked, class T>
LAPAL_HD void softmax_block_for_loss(const LookaheadTile<T>& tile, const T* moved, const T* best, const T* link,
                                     int64_t start, Softmaxes<T>& softmaxes) {
  T* rest = softmaxes.rest + start;
  T* moments = softmaxes.moments + start;
  switch (tile.kind) {
    case Loss::cross_entropy:
    case Loss::expected_zero_one:
      return sum_losing_classes<Moment::none, kLinked>(moved, tile.n_classes, best, link, rest, moments);
    case Loss::expected_cross_entropy:
      return sum_losing_classes<Moment::energy, kLinked>(moved, tile.n_classes, best, link, rest, moments);
    case Loss::brier:
      return sum_losing_classes<Moment::squares, kLinked>(moved, tile.n_classes, best, link, rest, moments);
    case Loss::zero_one:
      return;  // needs no sums
  }
}

// Sum of the losses of a tile's points, in a fixed order.
template <Loss kind, class T>
LAPAL_HD double sum_losses(const LookaheadTile<T>& tile, const Softmaxes<T>& softmaxes) {
  constexpr int kL = kLanes<T>;
  alignas(kBlockBytes) double lane_sums[kL] = {};
  for (int64_t start = 0; start < tile.points; start += kL) {
    alignas(kBlockBytes) T losses[kL];
#pragma omp simd
    for (int lane = 0; lane < kL; ++lane) {
      const int64_t e = start + lane;
      const bool hit = needs_of(kind).hit && tile.targets[e] == softmaxes.winners[e];
      losses[lane] = loss<kind>(softmaxes.rest[e], softmaxes.moments[e], softmaxes.targets[e], hit);
    }
    for (int64_t lane = tile.points - start; lane < kL; ++lane) {
      losses[lane] = T(0);
    }
#pragma omp simd
    for (int lane = 0; lane < kL; ++lane) {
      lane_sums[lane] += double(losses[lane]);
    }
  }
  double sum = 0.0;
  for (int lane = 0; lane < kL; ++lane) {
    sum += lane_sums[lane];
  }
  return sum;
}

template <class T>
LAPAL_HD double sum_losses_of_kind(const LookaheadTile<T>& tile, const Softmaxes<T>& softmaxes) {
  switch (tile.kind) {
    case Loss::cross_entropy:
      return sum_losses<Loss::cross_entropy>(tile, softmaxes);
    case Loss::zero_one:
      return sum_losses<Loss::zero_one>(tile, softmaxes);
    case Loss::brier:
      return sum_losses<Loss::brier>(tile, softmaxes);
    case Loss::expected_cross_entropy:
      return sum_losses<Loss::expected_cross_entropy>(tile, softmaxes);
    case Loss::expected_zero_one:
      return sum_losses<Loss::expected_zero_one>(tile, softmaxes);
  }
  return __builtin_nan("");
}

}  // namespace lapal_ext
