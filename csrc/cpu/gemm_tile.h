// The register tile of a matrix product: a few rows against a panel that is two vectors wide.
//
// A panel lies as [depth][kPanel], a group of rows as [row][depth] at a stride, both padded with zeros, so the loops
// have no tails. Every sum is one chain of multiply-adds over the depth, and where the depth is cut into chunks of
// kDepth, one addition per chunk: its order depends on the depth alone, not on where in a matrix the element lies.
//
// Limit: arithmetic, kRows * kPanel multiply-adds for kRows + 2 loads.
#pragma once

#include <algorithm>

#include "cpu/simd.h"

namespace lapal_ext {

constexpr int kWideRows = 14;    // 28 sums, two columns and a factor: the 32 registers of AVX-512
constexpr int kNarrowRows = 3;   // 12 of the 16 registers of AVX2, where a vector of 64 bytes takes two
constexpr int64_t kDepth = 384;  // of a chunk: so much of kWideRows rows stays in the first-level cache

template <class T>
constexpr int kPanel = 2 * kLanes<T>;

inline int rows_of_group() {
  return has_wide_registers() ? kWideRows : kNarrowRows;
}

// An odd number of cache lines between the rows of a group: they would otherwise share a few sets.
template <class T>
constexpr int64_t group_stride(int64_t depth) {
  return round_up(depth, kPanel<T>) + kLanes<T>;
}

// tile[row][j] = sum_i rows[row][i] panel[i][j]. The lines of a panel that was not packed lie `panel_stride` apart.
template <int kRows, class T>
LAPAL_HD void multiply_panel(const T* rows, int64_t stride, const T* panel, int64_t depth, T* tile,
                             int64_t panel_stride = kPanel<T>) {
  constexpr int kL = kLanes<T>;
  T left[kRows][kL] = {};
  T right[kRows][kL] = {};
  for (int64_t i = 0; i < depth; ++i) {
    const T* weights = panel + i * panel_stride;
    LAPAL_UNROLL
    for (int row = 0; row < kRows; ++row) {
      const T factor = rows[row * stride + i];
#pragma omp simd
      for (int lane = 0; lane < kL; ++lane) {
        left[row][lane] += factor * weights[lane];
      }
#pragma omp simd
      for (int lane = 0; lane < kL; ++lane) {
        right[row][lane] += factor * weights[kL + lane];
      }
    }
  }
  LAPAL_UNROLL
  for (int row = 0; row < kRows; ++row) {
#pragma omp simd
    for (int lane = 0; lane < kL; ++lane) {
      tile[row * kPanel<T> + lane] = left[row][lane];
    }
#pragma omp simd
    for (int lane = 0; lane < kL; ++lane) {
      tile[row * kPanel<T> + kL + lane] = right[row][lane];
    }
  }
}

}  // namespace lapal_ext
