// Gain in coverage of many rows under the Gaussian kernel, with no kernel matrix in memory.
//
//   gain_j = sum_e w_e max(0, k_je - m_e),  k_je = exp(min(x_j . r_e - 1, 0) scale),  scale = 2 / h^2.
//
// Shapes: rows x [M, D], references r [E, D], weight w [E], covered m [E]; all with any strides -> float64 [M].
//
// A block takes kProductRows rows and a part of the references (evaluation_tiles.cuh), kCols of them at a time. Their
// products are in registers (product_tile.cuh), where each becomes a kernel value and a gain. A thread adds the gains
// of its columns, the kColThreads threads of a row add theirs, and one of them adds the sums of all kCols references in
// float64. A second launch adds the parts in order. So the order of a sum depends on D and E alone. If D is not a
// multiple of kProductDepth, rows and references are padded with zeros in front.
//
// Neighbouring blocks have the same rows and other parts: the blocks that run at once share a few tiles of rows, and
// all references or a few of each part, which the second-level cache holds.
//
// Workspace: a float64 number per row and part, for as many rows at a time as give each block kPairsPerBlock pairs;
// 17 MB on an H100.
//
// Limit: arithmetic, M E D multiply-adds and M E exponentials. From the second-level cache, D numbers per kCols pairs
// for the row and per kProductRows pairs for the reference.
#pragma once

#include "cuda/shared/evaluation_tiles.cuh"
#include "cuda/shared/product_tile.cuh"

namespace lapal_ext {

constexpr int64_t kPairsPerBlock = 4;  // of rows and parts, so that few blocks wait for the last ones

template <class T>
struct Coverage {
  PaddedRows<T> rows, references;
  int64_t n_padded;  // features, with the padding
  const T* weight;   // [E]
  int64_t weight_stride;
  const T* covered;  // [E]
  int64_t covered_stride;
  T scale;
  EvaluationParts parts;
  double* partial_sums;  // [parts, M]
};

// Adds the gains of the rows of the thread from its columns, which are references `first` + col(j). A product, a kernel
// value or a gain that is not a number stays one.
template <class T>
__device__ __forceinline__ void add_gains(const Coverage<T>& all, int64_t first,
                                          const typename ProductTile<T>::Sums& products, T (&gains)[kThreadRows]) {
  using Tile = ProductTile<T>;
  const int64_t left = all.references.n_rows - first;
  const int n_references = left < Tile::kCols ? int(left) : Tile::kCols;
#pragma unroll
  for (int j = 0; j < Tile::kThreadCols; ++j) {
    const int col = Tile::col(j);
    if (col < n_references) {
      const T weight = all.weight[(first + col) * all.weight_stride];
      const T covered = all.covered[(first + col) * all.covered_stride];
#pragma unroll
      for (int i = 0; i < kThreadRows; ++i) {
        const T above = products[i][j] - T(1);
        const T gain = exp_nonpositive((above > T(0) ? T(0) : above) * all.scale) - covered;
        gains[i] += weight * (gain < T(0) ? T(0) : gain);
      }
    }
  }
}

// Three blocks fit: without the 3, nvcc computes so many exponentials at once that two fit.
template <class T>
__global__ void __launch_bounds__(kProductBlock, 3) kernel_coverage_kernel(Coverage<T> all) {
  using Tile = ProductTile<T>;
  using Rows = RowsOfTile<T, kProductRows>;
  using References = RowsOfTile<T, Tile::kCols>;
  using Packed = typename Tile::Packed;
  static_assert(kThreadRows == kColThreads, "each of the threads of a row keeps the sum of one of their rows");
  LAPAL_SHARED(Packed, row_memory, kProductDepth * Rows::kLine);
  LAPAL_SHARED(Packed, reference_memory, kProductDepth * References::kLine);
  LAPAL_SHARED(double, sums, kProductBlock);  // each is its thread's own: in a register it would cause a spill
  const int64_t n_rows = all.rows.n_rows;
  const int64_t n_pairs = (n_rows + kProductRows - 1) / kProductRows * all.parts.n_parts;
  const int kept = int(threadIdx.x) % kColThreads;  // the row whose sum the thread keeps
  for (int64_t pair = blockIdx.x; pair < n_pairs; pair += gridDim.x) {
    const int64_t first_row = pair / all.parts.n_parts * kProductRows, part = pair % all.parts.n_parts;
    const int64_t end = all.parts.end(part);
    sums[threadIdx.x] = 0.0;
    for (int64_t first = all.parts.start(part); first < end; first += Tile::kCols) {
      typename Tile::Sums products = {};
      add_products(Rows(all.rows, first_row), References(all.references, first), 0, all.n_padded, row_memory,
                   reference_memory, products);
      T gains[kThreadRows] = {}, kept_gain = T(0);
      add_gains(all, first, products, gains);
#pragma unroll
      for (int i = 0; i < kThreadRows; ++i) {
        const T gain = warp_reduce<kColThreads>(gains[i], Sum());
        kept_gain = i == kept ? gain : kept_gain;
      }
      sums[threadIdx.x] += double(kept_gain);
    }
    const int64_t n = first_row + Tile::row(kept);
    if (n < n_rows) {
      all.partial_sums[part * n_rows + n] = sums[threadIdx.x];
    }
  }
}

}  // namespace lapal_ext
