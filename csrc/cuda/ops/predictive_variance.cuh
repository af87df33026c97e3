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
// block takes a pair of kProductRows rows and a panel. The third sums over the panels. Workspace: U, and a number per
// row and panel for as many rows at a time as the device has blocks for.
//
// The second kernel is a product of tiles in registers (product_tile.cuh). If D is not a multiple of kCols, the
// features are padded in front, so that the incomplete panel is the shortest. The panels with the longest sums come
// first.
//
// Limit: arithmetic, N D (D + kCols) / 2 multiply-adds.
#pragma once

#include "cuda/shared/product_tile.cuh"

namespace lapal_ext {

// Offset of a panel in the packed triangle: panels 0, 1, ... have 1, 2, ... times kCols rows.
template <class T>
__host__ __device__ constexpr int64_t panel_offset(int64_t panel) {
  return panel * (panel + 1) / 2 * ProductTile<T>::kCols * ProductTile<T>::kCols;
}

template <class T>
struct Forms {
  PaddedRows<T> features;
  int64_t n_panels;
  const T* triangle;  // packed
  T* parts;           // [n_panels, N]
  T* variance;        // [N]
};

// A block packs squares of kCols x kCols of the triangle.
template <class T>
__global__ void __launch_bounds__(kProductBlock, 1)
    pack_triangle_kernel(const T* covariance, int64_t row_stride, int64_t column_stride, int64_t n_features,
                         int64_t n_panels, T* triangle) {
  constexpr int kCols = ProductTile<T>::kCols;
  const int64_t padding = n_panels * kCols - n_features;
  for (int64_t square = blockIdx.x; square < n_panels * n_panels; square += gridDim.x) {
    const int64_t panel = square / n_panels, first_row = square % n_panels * kCols;
    if (first_row > panel * kCols) {
      continue;
    }
    T* to = triangle + panel_offset<T>(panel) + first_row * kCols;
    for (int e = int(threadIdx.x); e < kCols * kCols; e += kProductBlock) {
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

// A panel of the triangle as the columns of a tile.
template <class T>
struct PanelOfTile {
  using Tile = ProductTile<T>;
  static constexpr int kLine = Tile::kCols / Tile::kPack;
  static constexpr int kPacks = kProductDepth * kLine / kProductBlock;  // that a thread fetches
  static_assert(kProductDepth * kLine % kProductBlock == 0, "every thread fetches the same number of packs");

  const T* panel;

  struct Fetched {
    typename Tile::Packed packs[kPacks];
  };

  __device__ __forceinline__ void load(int64_t k, Fetched& fetched) const {
    const T* from = panel + k * Tile::kCols;
#pragma unroll
    for (int i = 0; i < kPacks; ++i) {
      fetched.packs[i] = load_pack<Tile::kPack>(from + (int(threadIdx.x) + i * kProductBlock) * Tile::kPack);
    }
  }

  __device__ __forceinline__ void store(const Fetched& fetched, typename Tile::Packed* memory) const {
#pragma unroll
    for (int i = 0; i < kPacks; ++i) {
      memory[int(threadIdx.x) + i * kProductBlock] = fetched.packs[i];
    }
  }
};

// The contribution of a panel to the variances: the sums times the features of its columns.
template <class T>
__device__ __forceinline__ void finish_panel(const Forms<T>& all, int64_t first_row, int64_t panel,
                                             const typename ProductTile<T>::Sums& sums) {
  using Tile = ProductTile<T>;
  const PaddedRows<T>& features = all.features;
#pragma unroll
  for (int i = 0; i < kThreadRows; ++i) {
    const int64_t n = first_row + Tile::row(i);
    T part = T(0);
#pragma unroll
    for (int j = 0; j < Tile::kThreadCols; ++j) {
      const int64_t feature = panel * Tile::kCols + Tile::col(j) - features.padding;
      if (n < features.n_rows && feature >= 0) {
        part += sums[i][j] * features.data[n * features.row_stride + feature * features.feature_stride];
      }
    }
    part = warp_reduce<kColThreads>(part, Sum());
    if (threadIdx.x % kColThreads == 0 && n < features.n_rows) {
      all.parts[panel * features.n_rows + n] = part;
    }
  }
}

template <class T>
__global__ void __launch_bounds__(kProductBlock) variance_kernel(Forms<T> all) {
  using Tile = ProductTile<T>;
  using Rows = RowsOfTile<T, kProductRows>;
  using Packed = typename Tile::Packed;
  LAPAL_SHARED(Packed, rows, kProductDepth * Rows::kLine);
  LAPAL_SHARED(Packed, columns, kProductDepth * PanelOfTile<T>::kLine);
  const int64_t n_row_tiles = (all.features.n_rows + kProductRows - 1) / kProductRows;
  for (int64_t unit = blockIdx.x; unit < n_row_tiles * all.n_panels; unit += gridDim.x) {
    const int64_t panel = all.n_panels - 1 - unit / n_row_tiles, first_row = unit % n_row_tiles * kProductRows;
    typename Tile::Sums sums = {};
    add_products(Rows(all.features, first_row), PanelOfTile<T>{all.triangle + panel_offset<T>(panel)},
                 all.features.padding / kProductDepth * kProductDepth, (panel + 1) * Tile::kCols, rows, columns, sums);
    finish_panel(all, first_row, panel, sums);
  }
}

// A row per thread.
template <class T>
__global__ void __launch_bounds__(kProductBlock, 1) sum_panels_kernel(Forms<T> all) {
  const int64_t n_rows = all.features.n_rows, step = int64_t(gridDim.x) * kProductBlock;
  for (int64_t n = int64_t(blockIdx.x) * kProductBlock + threadIdx.x; n < n_rows; n += step) {
    double sum = 0.0;
    for (int64_t panel = 0; panel < all.n_panels; ++panel) {
      sum += double(all.parts[panel * n_rows + n]);
    }
    all.variance[n] = T(sum);
  }
}

}  // namespace lapal_ext
