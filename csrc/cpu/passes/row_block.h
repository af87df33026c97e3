// Rows of a matrix [N, C] into lanes and back: one block of rows is [C][lane].
#pragma once

#include "cpu/simd/lanes.h"
#include "cpu/simd/transpose.h"

namespace lapal_ext {

// Lanes behind the last of `valid` rows repeat it, rather than compute with what happens to lie there.
template <class T>
LAPAL_HD void read_rows(const T* rows, int64_t row_stride, int64_t class_stride, int64_t n_classes, int64_t valid,
                        T* block) {
  constexpr int kL = kLanes<T>;
  if (row_stride == 1 && valid == kL) {
    for (int64_t k = 0; k < n_classes; ++k) {
#pragma omp simd
      for (int lane = 0; lane < kL; ++lane) {
        block[k * kL + lane] = rows[k * class_stride + lane];
      }
    }
    return;
  }
  if (class_stride == 1 && valid == kL) {
    return transpose(rows, row_stride, kL, n_classes, block, kL);
  }
  for (int lane = 0; lane < kL; ++lane) {
    const T* row = rows + (lane < valid ? lane : valid - 1) * row_stride;
    for (int64_t k = 0; k < n_classes; ++k) {
      block[k * kL + lane] = row[k * class_stride];
    }
  }
}

template <class T>
LAPAL_HD void write_rows(const T* block, int64_t n_classes, int64_t valid, T* rows) {
  for (int64_t lane = 0; lane < valid; lane += 4) {  // few rows at a time, so that each is written from end to end
    transpose(block + lane, kLanes<T>, n_classes, std::min<int64_t>(4, valid - lane), rows + lane * n_classes,
              n_classes);
  }
}

// A vector's values for the rows of one block.
template <class T>
LAPAL_HD void read_values(const T* values, int64_t stride, int64_t valid, T* block) {
  for (int lane = 0; lane < kLanes<T>; ++lane) {
    block[lane] = values[(lane < valid ? lane : valid - 1) * stride];
  }
}

// Blocks that one worker should have at least, so that starting it pays.
template <class T>
constexpr int64_t grain_of_rows(int64_t n_classes) {
  return 1 + 8192 / (n_classes * kLanes<T>);
}

}  // namespace lapal_ext
