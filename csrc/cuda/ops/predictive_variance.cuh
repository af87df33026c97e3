// Variance of the logits of many rows.
//
//   v_n = phi_n^T Sigma phi_n = sum_j phi_nj sum_{i <= j} phi_ni U_ij,  U_ij = Sigma_ij + Sigma_ji, U_jj = Sigma_jj.
//
// Shapes: features [N, D], covariance [D, D] -> [N]; all with any strides.
//
// Why not torch's product: the quadratic form depends on U only, which is half the arithmetic of (Phi Sigma) * Phi;
// nothing of size N x D is written; and the order of a sum depends on D only, so equal rows have equal variances.
//
// Three launches. The first packs U in panels [D / kCols][row][kCols], each down to its diagonal. In the second, a
// block takes a pair of kFormRows rows and a panel. The third sums over the panels. Workspace: U, and a number per row
// and panel for as many rows at a time as the device has blocks for.
//
// A block copies kFormDepth features of its rows, transposed, and as many rows of the panel to shared memory, while it
// loads the next ones to registers. A thread keeps 8 rows x 2 packs of columns in registers: per 64 multiply-adds in
// float32 it reads 64 bytes of shared memory, which the hardware can deliver in that time. Two or three blocks share a
// multiprocessor, so some multiply while others wait at a barrier. If D is not a multiple of kCols, the features are
// padded in front, so that the incomplete panel is the shortest. The panels with the longest sums come first.
//
// Limit: arithmetic, N D (D + kCols) / 2 multiply-adds.
#pragma once

#include "cuda/shared/reduce.cuh"

namespace lapal_ext {

constexpr int kFormBlock = 128;  // threads
constexpr int kFormDepth = 16;   // features at a time
constexpr int kColThreads = 8;   // neighbouring threads with the same rows and other columns
constexpr int kRowThreads = kFormBlock / kColThreads;
constexpr int kThreadRows = 8;
constexpr int kFormRows = kRowThreads * kThreadRows;  // of a block

// What depends on the size of a number: two packs of columns and all rows of a thread, in packs of 16 bytes.
template <class T>
struct FormTile {
  static constexpr int kPack = 16 / int(sizeof(T));
  static constexpr int kRowPacks = kThreadRows / kPack;
  static constexpr int kThreadCols = 2 * kPack;
  static constexpr int kCols = kColThreads * kThreadCols;
  static constexpr int kRowLine = kFormRows / kPack + 1;  // packs; an odd number spreads a column over the banks
  static constexpr int kColLine = kCols / kPack;
};

// Offset of a panel in the packed triangle: panels 0, 1, ... have 1, 2, ... times kCols rows.
template <class T>
__host__ __device__ constexpr int64_t panel_offset(int64_t panel) {
  return panel * (panel + 1) / 2 * FormTile<T>::kCols * FormTile<T>::kCols;
}

template <class T>
struct Forms {
  const T* features;
  int64_t row_stride;
  int64_t feature_stride;
  int64_t n_rows;
  int64_t n_features;
  int64_t n_panels;
  const T* triangle;  // packed
  T* parts;           // [n_panels, N]
  T* variance;        // [N]

  // Zeros in front of the features.
  __device__ __forceinline__ int64_t padding() const {
    return n_panels * FormTile<T>::kCols - n_features;
  }
};

// A block packs squares of kCols x kCols of the triangle.
template <class T>
__global__ void __launch_bounds__(kFormBlock, 1)
    pack_triangle_kernel(const T* covariance, int64_t row_stride, int64_t column_stride, int64_t n_features,
                         int64_t n_panels, T* triangle) {
  constexpr int kCols = FormTile<T>::kCols;
  const int64_t padding = n_panels * kCols - n_features;
  for (int64_t square = blockIdx.x; square < n_panels * n_panels; square += gridDim.x) {
    const int64_t panel = square / n_panels, first_row = square % n_panels * kCols;
    if (first_row > panel * kCols) {
      continue;
    }
    T* to = triangle + panel_offset<T>(panel) + first_row * kCols;
    for (int e = int(threadIdx.x); e < kCols * kCols; e += kFormBlock) {
      const int64_t i = first_row + e / kCols - padding, j = panel * kCols + e % kCols - padding;
      T value = T(0);
      if (i >= 0 && i <= j) {
        value = covariance[i * row_stride + j * column_stride];
        value += i < j ? covariance[j * row_stride + i * column_stride] : T(0);
      }
      to[e] = value;
    }
  }
}

// kFormDepth features of the rows of a block and as many rows of the panel, in registers before they are stored to
// shared memory.
template <class T>
struct Fetched {
  using Tile = FormTile<T>;
  static constexpr int kFeatures = kFormRows * kFormDepth / kFormBlock;
  static constexpr int kPacks = kFormDepth * Tile::kColLine / kFormBlock;
  static_assert(kFeatures == kFormDepth && kFormBlock == kFormRows, "a thread fetches one row, or 1/16 of 16 rows");
  static_assert(kFormDepth * Tile::kColLine % kFormBlock == 0, "every thread fetches the same number of packs");

  T features[kFeatures];
  Pack<T, Tile::kPack> packs[kPacks];

  // Neighbouring threads load neighbouring numbers, for contiguous rows and for contiguous features: a thread loads all
  // features of one row, or one feature of every kRowStep-th row.
  static constexpr int kRowStep = kFormBlock / kFormDepth;
  static __device__ __forceinline__ int first_row_of(bool along_rows) {
    return along_rows ? int(threadIdx.x) : int(threadIdx.x) / kFormDepth;
  }
  static __device__ __forceinline__ int first_depth_of(bool along_rows) {
    return along_rows ? 0 : int(threadIdx.x) % kFormDepth;
  }

  // `k` includes the padding.
  __device__ __forceinline__ void load(const Forms<T>& all, int64_t first_row, const T* panel, int64_t k,
                                       bool along_rows) {
    int64_t n = first_row + first_row_of(along_rows), feature = k + first_depth_of(along_rows) - all.padding();
    int64_t at = n * all.row_stride + feature * all.feature_stride;
    const int64_t step = along_rows ? all.feature_stride : kRowStep * all.row_stride;
    const int row_step = along_rows ? 0 : kRowStep, feature_step = along_rows ? 1 : 0;
#pragma unroll
    for (int i = 0; i < kFeatures; ++i) {
      features[i] = n < all.n_rows && feature >= 0 ? all.features[at] : T(0);
      n += row_step;
      feature += feature_step;
      at += step;
    }
    const T* from = panel + k * Tile::kCols;
#pragma unroll
    for (int i = 0; i < kPacks; ++i) {
      packs[i] = load_pack<Tile::kPack>(from + (int(threadIdx.x) + i * kFormBlock) * Tile::kPack);
    }
  }

  __device__ __forceinline__ void store(Pack<T, Tile::kPack>* rows, Pack<T, Tile::kPack>* panel,
                                        bool along_rows) const {
    constexpr int kLine = Tile::kRowLine * Tile::kPack;
    T* to = reinterpret_cast<T*>(rows) + first_depth_of(along_rows) * kLine + first_row_of(along_rows);
    const int step = along_rows ? kLine : kRowStep;
#pragma unroll
    for (int i = 0; i < kFeatures; ++i) {
      to[i * step] = features[i];
    }
#pragma unroll
    for (int i = 0; i < kPacks; ++i) {
      panel[int(threadIdx.x) + i * kFormBlock] = packs[i];
    }
  }
};

// Adds kFormDepth outer products of the rows and columns of the thread.
template <class T>
__device__ __forceinline__ void multiply_tile(const Pack<T, FormTile<T>::kPack>* rows,
                                              const Pack<T, FormTile<T>::kPack>* panel,
                                              T (&sums)[kThreadRows][FormTile<T>::kThreadCols]) {
  using Tile = FormTile<T>;
  const int col = int(threadIdx.x) % kColThreads, row = int(threadIdx.x) / kColThreads;
  // Not unrolled completely: it would need so many registers that fewer blocks fit.
#pragma unroll 4
  for (int depth = 0; depth < kFormDepth; ++depth) {
    Pack<T, Tile::kPack> of_rows[Tile::kRowPacks], of_cols[2];
#pragma unroll
    for (int i = 0; i < Tile::kRowPacks; ++i) {
      of_rows[i] = rows[depth * Tile::kRowLine + i * kRowThreads + row];
    }
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      of_cols[j] = panel[depth * Tile::kColLine + j * kColThreads + col];
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

// The contribution of a panel to the variances: the sums times the features of its columns.
template <class T>
__device__ __forceinline__ void finish_panel(const Forms<T>& all, int64_t first_row, int64_t panel,
                                             const T (&sums)[kThreadRows][FormTile<T>::kThreadCols]) {
  using Tile = FormTile<T>;
  const int col = int(threadIdx.x) % kColThreads, row = int(threadIdx.x) / kColThreads;
#pragma unroll
  for (int i = 0; i < kThreadRows; ++i) {
    const int64_t n = first_row + (i / Tile::kPack * kRowThreads + row) * Tile::kPack + i % Tile::kPack;
    T part = T(0);
#pragma unroll
    for (int j = 0; j < Tile::kThreadCols; ++j) {
      const int in_panel = (j / Tile::kPack * kColThreads + col) * Tile::kPack + j % Tile::kPack;
      const int64_t feature = panel * Tile::kCols + in_panel - all.padding();
      if (n < all.n_rows && feature >= 0) {
        part += sums[i][j] * all.features[n * all.row_stride + feature * all.feature_stride];
      }
    }
    part = warp_reduce<kColThreads>(part, Sum());
    if (col == 0 && n < all.n_rows) {
      all.parts[panel * all.n_rows + n] = part;
    }
  }
}

template <class T>
__global__ void __launch_bounds__(kFormBlock) variance_kernel(Forms<T> all) {
  using Tile = FormTile<T>;
  using Packed = Pack<T, Tile::kPack>;
  LAPAL_SHARED(Packed, rows, kFormDepth * Tile::kRowLine);
  LAPAL_SHARED(Packed, columns, kFormDepth * Tile::kColLine);
  const int64_t n_row_tiles = (all.n_rows + kFormRows - 1) / kFormRows;
  const bool along_rows = all.row_stride < all.feature_stride;
  for (int64_t unit = blockIdx.x; unit < n_row_tiles * all.n_panels; unit += gridDim.x) {
    const int64_t panel = all.n_panels - 1 - unit / n_row_tiles, first_row = unit % n_row_tiles * kFormRows;
    const T* triangle = all.triangle + panel_offset<T>(panel);
    const int64_t end = (panel + 1) * Tile::kCols;
    T sums[kThreadRows][Tile::kThreadCols] = {};
    Fetched<T> fetched;
    int64_t k = all.padding() / kFormDepth * kFormDepth;
    fetched.load(all, first_row, triangle, k, along_rows);
    while (k < end) {
      fetched.store(rows, columns, along_rows);
      __syncthreads();
      k += kFormDepth;
      if (k < end) {
        fetched.load(all, first_row, triangle, k, along_rows);
      }
      multiply_tile<T>(rows, columns, sums);
      __syncthreads();  // the next features overwrite these
    }
    finish_panel(all, first_row, panel, sums);
  }
}

// A row per thread.
template <class T>
__global__ void __launch_bounds__(kFormBlock, 1) sum_panels_kernel(Forms<T> all) {
  const int64_t step = int64_t(gridDim.x) * kFormBlock;
  for (int64_t n = int64_t(blockIdx.x) * kFormBlock + threadIdx.x; n < all.n_rows; n += step) {
    double sum = 0.0;
    for (int64_t panel = 0; panel < all.n_panels; ++panel) {
      sum += double(all.parts[panel * all.n_rows + n]);
    }
    all.variance[n] = T(sum);
  }
}

}  // namespace lapal_ext
