// Rows of a matrix [N, C] to lanes and back. One block of rows is [C][lane].
#pragma once

#include "cpu/simd/lanes.h"
#include "cpu/simd/transpose.h"
#include "shared/logit_rows.h"

namespace lapal_ext {

// Reads the `valid` rows from `start`. The lanes after the last row repeat it, so that they hold ordinary numbers.
template <class T>
LAPAL_HD void read_rows(const LogitRows<T>& logits, int64_t start, int64_t valid, T* block) {
  constexpr int kL = kLanes<T>;
  const int64_t row_stride = logits.row_stride, class_stride = logits.class_stride, n_classes = logits.n_classes;
  const T* rows = logits.data + start * row_stride;
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
  for (int64_t lane = 0; lane < valid; lane += 4) {  // few rows at a time, so that memory is written in order
    transpose(block + lane, kLanes<T>, n_classes, std::min<int64_t>(4, valid - lane), rows + lane * n_classes,
              n_classes);
  }
}

// The values of a vector for the rows of one block.
template <class T>
LAPAL_HD void read_values(const T* values, int64_t stride, int64_t valid, T* block) {
  for (int lane = 0; lane < kLanes<T>; ++lane) {
    block[lane] = values[(lane < valid ? lane : valid - 1) * stride];
  }
}

// Fewest blocks of one worker; with fewer, starting the worker costs more.
template <class T>
constexpr int64_t grain_of_rows(int64_t n_classes) {
  return 1 + 8192 / (n_classes * kLanes<T>);
}

}  // namespace lapal_ext
