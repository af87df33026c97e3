// The register tile of a matrix product: a few rows against a panel that is two vectors wide.
//
// A panel lies as [depth][kPanel], a group of rows as [row][depth] at a stride, both padded with zeros, so the loops
// have no tails; or the group as [depth][row], where its rows are columns of other panels. Every sum is one chain of
// multiply-adds over the depth, and where the depth is cut into chunks of kDepth, one addition per chunk: its order
// depends on the depth alone, not on where in a matrix the element lies.
//
// Limit: arithmetic, kRows * kPanel multiply-adds for kRows + 2 loads.
#pragma once

#include <algorithm>

#include "cpu/simd/lanes.h"

namespace lapal_ext {

constexpr int kAvx512Rows = 14;   // 28 sums, two columns and a factor: the 32 registers of AVX-512
constexpr int kPortableRows = 3;  // 12 of the 16 registers of AVX2, where a vector of 64 bytes takes two
constexpr int64_t kDepth = 384;   // of a chunk: so much of kAvx512Rows rows stays in the first-level cache
// Lines of a matrix that are called for ahead: they lie too far apart for the hardware to foresee the next.
constexpr int64_t kLinesAhead = 8;

template <class T>
constexpr int kPanel = 2 * kLanes<T>;

inline int rows_of_group() {
  return has_avx512() ? kAvx512Rows : kPortableRows;
}

// Between the rows of a group, one chunk of the depth wide. An odd number of cache lines: they would otherwise share a
// few sets. A constant: as a variable, it takes a pointer per row, more than there are registers for.
template <class T>
constexpr int64_t kGroupStride = round_up(kDepth, kPanel<T>) + kLanes<T>;

// Where chunk `start / kDepth` of a group of rows begins: chunks lie one behind another, each as [row][kGroupStride].
template <int kRows, class T>
constexpr int64_t group_offset(int64_t start) {
  return start / kDepth * kRows * kGroupStride<T>;
}

// Numbers that a group of rows takes.
template <class T>
int64_t group_size(int64_t rows, int64_t depth) {
  return (depth + kDepth - 1) / kDepth * rows * kGroupStride<T>;
}

// The sums of a tile, in registers.
template <int kRows, class T>
struct TileSums {
  T left[kRows][kLanes<T>];
  T right[kRows][kLanes<T>];

  LAPAL_HD TileSums() {  // an initialiser would clear memory, and load it
    LAPAL_UNROLL
    for (int row = 0; row < kRows; ++row) {
#pragma omp simd
      for (int lane = 0; lane < kLanes<T>; ++lane) {
        left[row][lane] = T(0);
        right[row][lane] = T(0);
      }
    }
  }

  // Adds sum_i rows[row][i] panel[i][j]; the strides lie between rows, between i in a row, and between i in the panel.
  // Apart: in a panel that was not packed.
  template <bool kApart = false>
  LAPAL_HD void add(const T* rows, int64_t row_stride, int64_t factor_stride, const T* panel, int64_t panel_stride,
                    int64_t depth) {
    constexpr int kL = kLanes<T>;
    for (int64_t i = 0; i < depth; ++i) {
      const T* weights = panel + i * panel_stride;
      if constexpr (kApart) {
        __builtin_prefetch(weights + kLinesAhead * panel_stride);
        __builtin_prefetch(weights + kLinesAhead * panel_stride + kL);
      }
      LAPAL_UNROLL
      for (int row = 0; row < kRows; ++row) {
        const T factor = rows[row * row_stride + i * factor_stride];
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
  }

  LAPAL_HD void store(T* tile) const {
    constexpr int kL = kLanes<T>;
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
};

// tile[row][j] = sum_i rows[row][i] panel[i][j].
template <int kRows, class T>
LAPAL_HD void multiply_panel(const T* rows, int64_t stride, const T* panel, int64_t depth, T* tile) {
  TileSums<kRows, T> sums;
  sums.add(rows, stride, 1, panel, kPanel<T>, depth);
  sums.store(tile);
}

// The same for a panel that was not packed: lines of a matrix, `panel_stride` apart.
template <int kRows, class T>
LAPAL_HD void multiply_lines(const T* rows, int64_t stride, const T* panel, int64_t depth, T* tile,
                             int64_t panel_stride) {
  TileSums<kRows, T> sums;
  sums.template add<true>(rows, stride, 1, panel, panel_stride, depth);
  sums.store(tile);
}

// The same for a packed group of rows of any depth.
template <int kRows, class T>
LAPAL_HD void multiply_group(const T* group, const T* panel, int64_t depth, T* tile) {
  TileSums<kRows, T> sums;
  for (int64_t start = 0; start < depth; start += kDepth) {
    sums.add(group + group_offset<kRows, T>(start), kGroupStride<T>, 1, panel + start * kPanel<T>, kPanel<T>,
             std::min(kDepth, depth - start));
  }
  sums.store(tile);
}

// Between the lines of a group that lies as [depth][row], which may be written as whole vectors.
template <int kRows>
constexpr int64_t kColumnStride = kRows <= 4 ? 4 : 16;

// multiply_panel for such a group, of any depth.
template <int kRows, class T>
LAPAL_HD void multiply_columns(const T* group, const T* panel, int64_t depth, T* tile) {
  TileSums<kRows, T> sums;
  sums.add(group, 1, kColumnStride<kRows>, panel, kPanel<T>, depth);
  sums.store(tile);
}

}  // namespace lapal_ext
