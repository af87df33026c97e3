// Products of a tile of rows with a tile of columns, in the registers of a block: for kernels that reduce the products
// at once, so that no matrix of them is in memory.
//
//   sums[i][j] += sum over k of row_i[k] column_j[k], one feature k after the other
//
// A block copies kProductDepth features of its rows, transposed, and as many of its columns to shared memory, while it
// loads the next ones to registers. A thread keeps 8 rows x 2 packs of columns in registers: per 64 multiply-adds in
// float32 it reads 64 bytes of shared memory, which the hardware can deliver in that time. Two or three blocks share a
// multiprocessor, so some multiply while others wait at a barrier.
//
// Rows have any strides. If their number of features is not a multiple of what a kernel needs, they are padded with
// zeros in front.
#pragma once

#include "cuda/shared/reduce.cuh"

namespace lapal_ext {

constexpr int kProductBlock = 128;  // threads
constexpr int kProductDepth = 16;   // features at a time
constexpr int kColThreads = 8;      // neighbouring threads with the same rows and other columns
constexpr int kRowThreads = kProductBlock / kColThreads;
constexpr int kThreadRows = 8;
constexpr int kProductRows = kRowThreads * kThreadRows;  // of a block

// What depends on the size of a number: two packs of columns and all rows of a thread, in packs of 16 bytes.
template <class T>
struct ProductTile {
  static constexpr int kPack = 16 / int(sizeof(T));
  static constexpr int kRowPacks = kThreadRows / kPack;
  static constexpr int kThreadCols = 2 * kPack;
  static constexpr int kCols = kColThreads * kThreadCols;

  using Packed = Pack<T, kPack>;
  using Sums = T[kThreadRows][kThreadCols];

  // The row of the tile that a thread calls its i-th, and the column that it calls its j-th.
  static __device__ __forceinline__ int row(int i) {
    return (i / kPack * kRowThreads + int(threadIdx.x) / kColThreads) * kPack + i % kPack;
  }
  static __device__ __forceinline__ int col(int j) {
    return (j / kPack * kColThreads + int(threadIdx.x) % kColThreads) * kPack + j % kPack;
  }
};

template <class T>
struct PaddedRows {
  const T* data;
  int64_t row_stride;
  int64_t feature_stride;
  int64_t n_rows;
  int64_t padding;  // zeros in front of the features
};

// kRows of them, from first_row on; zeros after the last. They are the rows of a tile, or its columns.
template <class T, int kRows>
struct RowsOfTile {
  using Tile = ProductTile<T>;
  static constexpr int kLine = kRows / Tile::kPack + 1;  // packs; an odd number spreads a column over the banks
  static constexpr int kFeatures = kRows * kProductDepth / kProductBlock;  // that a thread fetches
  static constexpr int kRowStep = kProductBlock / kProductDepth;
  static_assert(kProductBlock % kRows == 0, "a thread fetches kFeatures of one row, or of one feature");
  static_assert(kFeatures * kRowStep == kRows, "every thread fetches the same number of features");

  const PaddedRows<T>& rows;
  int64_t first_row;
  bool along_rows;

  __device__ __forceinline__ RowsOfTile(const PaddedRows<T>& rows, int64_t first_row)
      : rows(rows), first_row(first_row), along_rows(rows.row_stride < rows.feature_stride) {}

  // Neighbouring threads load neighbouring numbers, for contiguous rows and for contiguous features: a thread loads
  // neighbouring features of one row, or one feature of every kRowStep-th row. The compiler does not know that
  // threadIdx.x is below kProductBlock.
  __device__ __forceinline__ int row_of_thread() const {
    const int thread = int(threadIdx.x);
    return !along_rows ? thread / kProductDepth : kRows == kProductBlock ? thread : thread % kRows;
  }
  __device__ __forceinline__ int depth_of_thread() const {
    const int thread = int(threadIdx.x);
    return !along_rows ? thread % kProductDepth : kRows == kProductBlock ? 0 : thread / kRows * kFeatures;
  }

  // In registers, before they are stored to shared memory.
  struct Fetched {
    T features[kFeatures];
  };

  // kProductDepth features from `k` on, which includes the padding.
  __device__ __forceinline__ void load(int64_t k, Fetched& fetched) const {
    const int64_t n = first_row + row_of_thread(), feature = k + depth_of_thread() - rows.padding;
    const int64_t step = along_rows ? rows.feature_stride : kRowStep * rows.row_stride;
    const int64_t left = rows.n_rows - n;
    int begin = 0, end = kFeatures;
    if (along_rows) {
      begin = feature < 0 ? int(-feature) : 0;
      end = left > 0 ? kFeatures : 0;
    } else {
      end = feature < 0 || left <= 0 ? 0 : left >= kRows ? kFeatures : (int(left) + kRowStep - 1) / kRowStep;
    }
    const T* from = rows.data + n * rows.row_stride + feature * rows.feature_stride;
#pragma unroll
    for (int i = 0; i < kFeatures; ++i) {
      fetched.features[i] = i >= begin && i < end ? *from : T(0);
      from += step;
    }
  }

  // To [feature][row].
  __device__ __forceinline__ void store(const Fetched& fetched, typename Tile::Packed* memory) const {
    constexpr int kNumbers = kLine * Tile::kPack;
    T* to = reinterpret_cast<T*>(memory) + depth_of_thread() * kNumbers + row_of_thread();
    const int step = along_rows ? kNumbers : kRowStep;
#pragma unroll
    for (int i = 0; i < kFeatures; ++i) {
      to[i * step] = fetched.features[i];
    }
  }
};

// Adds kProductDepth outer products of the rows and columns of the thread.
template <class T, int kColLine>
__device__ __forceinline__ void multiply_tile(const typename ProductTile<T>::Packed* rows,
                                              const typename ProductTile<T>::Packed* columns,
                                              typename ProductTile<T>::Sums& sums) {
  using Tile = ProductTile<T>;
  constexpr int kRowLine = RowsOfTile<T, kProductRows>::kLine;
  const int col = int(threadIdx.x) % kColThreads, row = int(threadIdx.x) / kColThreads;
  // Not unrolled completely: it would need so many registers that fewer blocks fit.
#pragma unroll 4
  for (int depth = 0; depth < kProductDepth; ++depth) {
    typename Tile::Packed of_rows[Tile::kRowPacks], of_cols[2];
#pragma unroll
    for (int i = 0; i < Tile::kRowPacks; ++i) {
      of_rows[i] = rows[depth * kRowLine + i * kRowThreads + row];
    }
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      of_cols[j] = columns[depth * kColLine + j * kColThreads + col];
    }
#pragma unroll
    for (int i = 0; i < kThreadRows; ++i) {
#pragma unroll
      for (int j = 0; j < Tile::kThreadCols; ++j) {
        sums[i][j] +=
            of_rows[i / Tile::kPack].values[i % Tile::kPack] * of_cols[j / Tile::kPack].values[j % Tile::kPack];
      }
    }
  }
}

// Adds the products of features [k, end), kProductDepth of them or a multiple. `columns` has what RowsOfTile has:
// kLine, Fetched, load() and store(). All threads of the block call it.
template <class T, class Columns>
__device__ __forceinline__ void add_products(const RowsOfTile<T, kProductRows>& rows, const Columns& columns, int64_t k,
                                             int64_t end, typename ProductTile<T>::Packed* row_memory,
                                             typename ProductTile<T>::Packed* column_memory,
                                             typename ProductTile<T>::Sums& sums) {
  typename RowsOfTile<T, kProductRows>::Fetched next_rows;
  typename Columns::Fetched next_columns;
  rows.load(k, next_rows);
  columns.load(k, next_columns);
  while (k < end) {
    rows.store(next_rows, row_memory);
    columns.store(next_columns, column_memory);
    __syncthreads();
    k += kProductDepth;
    if (k < end) {
      rows.load(k, next_rows);
      columns.load(k, next_columns);
    }
    multiply_tile<T, Columns::kLine>(row_memory, column_memory, sums);
    __syncthreads();  // the next features overwrite these
  }
}

}  // namespace lapal_ext
