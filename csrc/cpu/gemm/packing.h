// Packing of matrices with any strides into the layout that the tile of a product reads (cpu/gemm/tile.h).
#pragma once

#include <algorithm>

#include "cpu/gemm/matrix.h"
#include "cpu/gemm/tile.h"
#include "cpu/simd/transpose.h"

namespace lapal_ext {

// Points [begin, end) whose lines are contiguous, packed as [panel][depth][kPanel]. The outer loop is over lines, so
// that memory is read in order.
template <class T>
LAPAL_HD void pack_lines(const Matrix<T>& points, int64_t begin, int64_t end, int64_t start, int64_t depth, T* panels) {
  for (int64_t i = 0; i < depth; ++i) {
    const T* line = points.data + (start + i) * points.feature_stride;
    const T* later = line + kLinesAhead * points.feature_stride;
    for (int64_t point = begin; point < end; point += kPanel<T>) {
      const int64_t valid = std::min<int64_t>(kPanel<T>, end - point);
      T* to = panels + (point - begin) * depth + i * kPanel<T>;
      __builtin_prefetch(later + point);
      __builtin_prefetch(later + point + kLanes<T>);
      if (valid == kPanel<T>) {
#pragma omp simd
        for (int j = 0; j < kPanel<T>; ++j) {
          to[j] = line[point + j];
        }
      } else {
        std::copy(line + point, line + end, to);
        std::fill(to + valid, to + kPanel<T>, T(0));
      }
    }
  }
}

// The same for points with any other strides.
template <class T>
LAPAL_HD void pack_points(const Matrix<T>& points, int64_t begin, int64_t end, int64_t start, int64_t depth,
                          T* panels) {
  for (int64_t point = begin; point < end; point += kPanel<T>) {
    const int64_t valid = std::min<int64_t>(kPanel<T>, end - point);
    T* panel = panels + (point - begin) * depth;
    if (valid < kPanel<T>) {
      std::fill(panel, panel + depth * kPanel<T>, T(0));
    }
    const T* from = points.data + point * points.row_stride + start * points.feature_stride;
    if (points.feature_stride == 1) {
      transpose(from, points.row_stride, valid, depth, panel, kPanel<T>);
      continue;
    }
    for (int64_t i = 0; i < depth; ++i) {
      for (int64_t j = 0; j < valid; ++j) {
        panel[i * kPanel<T> + j] = from[j * points.row_stride + i * points.feature_stride];
      }
    }
  }
}

// Rows [first, first + kRows) as one chunk of a group, with zeros after the last row.
template <int kRows, class T>
LAPAL_HD void pack_group(const Matrix<T>& rows, int64_t first, int64_t start, int64_t depth, T* group) {
  for (int64_t row = 0; row < kRows; ++row) {
    T* to = group + row * kGroupStride<T>;
    if (first + row >= rows.n_rows) {
      std::fill(to, to + depth, T(0));
      continue;
    }
    const T* from = rows.data + (first + row) * rows.row_stride + start * rows.feature_stride;
    for (int64_t i = 0; i < depth; ++i) {
      to[i] = from[i * rows.feature_stride];
    }
  }
}

}  // namespace lapal_ext
