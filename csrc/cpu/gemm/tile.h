// The register tile of a matrix product: a few rows times a panel that is two vectors wide.
//
// Layout: a panel is [depth][kPanel]. A group of rows is [row][depth] at a stride, or [depth][row] if its rows are
// columns of other panels. Both are padded with zeros, so the loops have no tails. Every sum is one chain of
// multiply-adds over the depth. If the depth is cut into chunks of kDepth, there is one addition per chunk. So the
// order of a sum depends on the depth only, not on the position of the element in a matrix.
//
// Limit: arithmetic, kRows * kPanel multiply-adds for kRows + 2 loads.
#pragma once

#include <algorithm>

#include "cpu/simd/lanes.h"

namespace lapal_ext {

constexpr int kAvx512Rows = 14;   // 28 sums, two columns and a factor fill the 32 registers of AVX-512
constexpr int kPortableRows = 3;  // 12 of the 16 registers of AVX2, in which a vector of 64 bytes takes two
constexpr int64_t kDepth = 384;   // of a chunk: this part of kAvx512Rows rows stays in the first-level cache
// Lines of a matrix that are prefetched: they are too far apart for the hardware prefetcher.
constexpr int64_t kLinesAhead = 8;

template <class T>
constexpr int kPanel = 2 * kLanes<T>;

inline int rows_of_group() {
  return has_avx512() ? kAvx512Rows : kPortableRows;
}

// Distance between the rows of a group, for one chunk of the depth. It is an odd number of cache lines: with an even
// number, the rows would share a few cache sets. It is a constant: a variable would take one pointer register per row.
template <class T>
constexpr int64_t kGroupStride = round_up(kDepth, kPanel<T>) + kLanes<T>;

// Offset of chunk `start / kDepth` of a group of rows. Chunks follow each other, each as [row][kGroupStride].
template <int kRows, class T>
constexpr int64_t group_offset(int64_t start) {
  return start / kDepth * kRows * kGroupStride<T>;
}

// Size of a group of rows, in numbers.
template <class T>
int64_t group_size(int64_t rows, int64_t depth) {
  return (depth + kDepth - 1) / kDepth * rows * kGroupStride<T>;
}

// The sums of a tile, in registers.
template <int kRows, class T>
struct TileSums {
  T left[kRows][kLanes<T>];
  T right[kRows][kLanes<T>];

  LAPAL_HD TileSums() {  // an initialiser would clear memory and load it again
    LAPAL_UNROLL
    for (int row = 0; row < kRows; ++row) {
#pragma omp simd
      for (int lane = 0; lane < kLanes<T>; ++lane) {
        left[row][lane] = T(0);
        right[row][lane] = T(0);
      }
    }
  }

  // Adds sum_i rows[row][i] panel[i][j]. The strides are those between rows, between i in a row, and between i in the
  // panel. kApart: the panel was not packed, and its lines are prefetched.
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

// The same for a panel that was not packed: its lines are `panel_stride` apart.
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

// Distance between the lines of a group [depth][row], which are written in whole vectors.
template <int kRows>
constexpr int64_t kColumnStride = kRows <= 4 ? 4 : 16;

// multiply_panel for a group [depth][row] of any depth.
template <int kRows, class T>
LAPAL_HD void multiply_columns(const T* group, const T* panel, int64_t depth, T* tile) {
  TileSums<kRows, T> sums;
  sums.add(group, 1, kColumnStride<kRows>, panel, kPanel<T>, depth);
  sums.store(tile);
}

}  // namespace lapal_ext
