// Transposition of small matrices, for blocks and panels that have the rows of a matrix in lanes.
//
// Squares of 4 x 4 are transposed in registers. The edges are moved number by number, which is two to three times as
// slow.
#pragma once

#include <algorithm>
#include <cstring>

#include "cpu/simd/lanes.h"

namespace lapal_ext {

#if LAPAL_HAS_SHUFFLE
// to[j][i] = from[i][j] for i, j < 4; the strides are those between lines.
template <class T>
LAPAL_HD void transpose_square(const T* from, int64_t from_stride, T* to, int64_t to_stride) {
  using Vector = typename VectorOf<T, 4 * int(sizeof(T))>::Type;
  Vector a, b, c, d;
  std::memcpy(&a, from, sizeof(a));
  std::memcpy(&b, from + from_stride, sizeof(b));
  std::memcpy(&c, from + 2 * from_stride, sizeof(c));
  std::memcpy(&d, from + 3 * from_stride, sizeof(d));
  const Vector low_ab = __builtin_shufflevector(a, b, 0, 4, 1, 5), high_ab = __builtin_shufflevector(a, b, 2, 6, 3, 7);
  const Vector low_cd = __builtin_shufflevector(c, d, 0, 4, 1, 5), high_cd = __builtin_shufflevector(c, d, 2, 6, 3, 7);
  a = __builtin_shufflevector(low_ab, low_cd, 0, 1, 4, 5);
  b = __builtin_shufflevector(low_ab, low_cd, 2, 3, 6, 7);
  c = __builtin_shufflevector(high_ab, high_cd, 0, 1, 4, 5);
  d = __builtin_shufflevector(high_ab, high_cd, 2, 3, 6, 7);
  std::memcpy(to, &a, sizeof(a));
  std::memcpy(to + to_stride, &b, sizeof(b));
  std::memcpy(to + 2 * to_stride, &c, sizeof(c));
  std::memcpy(to + 3 * to_stride, &d, sizeof(d));
}
#else
template <class T>
LAPAL_HD void transpose_square(const T* from, int64_t from_stride, T* to, int64_t to_stride) {
  for (int i = 0; i < 4; ++i) {
    for (int j = 0; j < 4; ++j) {
      to[j * to_stride + i] = from[i * from_stride + j];
    }
  }
}
#endif

// to[j][i] = from[i][j] for i < rows, j < columns. One cache line of every row at a time, so that the lines that are
// written stay in cache until they are full.
template <class T>
LAPAL_HD void transpose(const T* from, int64_t from_stride, int64_t rows, int64_t columns, T* to, int64_t to_stride) {
  const int64_t whole_rows = rows / 4 * 4, whole_columns = columns / 4 * 4;
  for (int64_t chunk = 0; chunk < whole_columns; chunk += kLanes<T>) {
    const int64_t stop = std::min<int64_t>(chunk + kLanes<T>, whole_columns);
    for (int64_t i = 0; i < whole_rows; i += 4) {
      for (int64_t j = chunk; j < stop; j += 4) {
        transpose_square(from + i * from_stride + j, from_stride, to + j * to_stride + i, to_stride);
      }
    }
  }
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t j = i < whole_rows ? whole_columns : 0; j < columns; ++j) {
      to[j * to_stride + i] = from[i * from_stride + j];
    }
  }
}

}  // namespace lapal_ext
