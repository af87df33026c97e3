// Value, gradient and Hessian products of the cross-entropy of a linear softmax layer whose logits are known.
//
//   L = sum_n t_n (log sum_k exp(z_nk) - z_n[y_n])
//   gradient = sum_n t_n (p_n - e(y_n)) x_n^T,  H V = sum_n t_n (p_n * (v_n - p_n.v_n)) x_n^T,  p_n = softmax(z_n)
//
// Shapes: features x [N, D], logits z [C, N], targets y [N], trust t [N], directions v [H, C, N]; all with any strides
//         -> float64, [C, D], [H, C, D].
//
// Three launches. In the first, a thread takes a row (class_lines.cuh) and writes the factors of x_n, a line of N
// numbers for each class of the gradient and of each direction. A block adds the losses of its rows. A target out of
// range makes its factors and its loss NaN.
//
// The second multiplies the lines with the features. A block takes a part of the rows (evaluation_tiles.cuh) and a tile
// of kProductRows features x kCols lines, whose products are in registers (product_tile.cuh). The features are the
// rows of that tile and the lines its columns, because a layer often has few classes. kRunRows rows of x are summed in
// T, and the runs of a part in float64 in the workspace. If N is not a multiple of kProductDepth, zeros are added in
// front. Neighbouring blocks have the same part, so the blocks that run at once read it from cache.
//
// The third adds the parts of every result, and the losses, in order. So the order of a sum depends on the sizes only.
//
// Workspace: (1 + H) C N numbers; 8 bytes per kLineBlock rows; a float64 number per result and part, at most 32 MiB if
// there are several parts.
//
// Limit: arithmetic, (1 + H) N C D multiply-adds with whole tiles of lines and features, and 2 (1 + H) N C
// exponentials.
#pragma once

#include "cuda/shared/class_lines.cuh"
#include "cuda/shared/evaluation_tiles.cuh"
#include "cuda/shared/product_tile.cuh"

namespace lapal_ext {

constexpr int64_t kRunRows = 128;                 // of x that are summed in T
constexpr int64_t kLeastPartRows = 2 * kRunRows;  // of a part
constexpr int64_t kWantedPairs = 512;             // of parts and tiles; twice the blocks that run at once on an H100

template <class T>
struct Lines {
  LogitRows<T> logits;
  LogitRows<T> directions;  // the first of them
  int64_t direction_stride, n_directions;
  const int64_t* targets;
  int64_t target_stride;
  const T* trust;
  int64_t trust_stride;
  T* factors;      // [(1 + H) C, N]
  double* losses;  // [tiles]
};

// Writes the factors of row n; returns its loss.
template <class T>
__device__ __forceinline__ T factors_of_row(const Lines<T>& lines, int64_t n) {
  const int64_t n_rows = lines.logits.n_rows, n_classes = lines.logits.n_classes;
  const int64_t logit_stride = lines.logits.class_stride, v_stride = lines.directions.class_stride;
  const T* logits = lines.logits.data + n * lines.logits.row_stride;
  const auto logit = [=](int64_t k) { return logits[k * logit_stride]; };
  const int64_t target = lines.targets[n * lines.target_stride];
  const bool known = target >= 0 && target < n_classes;
  const T trust = known ? lines.trust[n * lines.trust_stride] : T(__builtin_nanf(""));

  const Candidate<T> winner = largest_logit<T>(n_classes, logit);
  LineSoftmax<T> softmax(winner.value);
#pragma unroll 4
  for (int64_t k = 0; k < n_classes; ++k) {
    softmax.add(logit(k));
  }
  softmax.finish();

  // p - 1 of the target. If it wins, that is a sum over the other classes, and does not cancel.
  const T label = known ? logit(target) : softmax.largest;
  const bool wins = label >= softmax.largest;
  const T of_target = wins ? -(softmax.rest * softmax.inverse) : softmax.probability(label) - T(1);
  T* to = lines.factors + n;
#pragma unroll 4
  for (int64_t k = 0; k < n_classes; ++k) {
    to[k * n_rows] = trust * (k == target ? of_target : softmax.probability(logit(k)));
  }

  const T* v = lines.directions.data + n * lines.directions.row_stride;
  for (int64_t h = 0; h < lines.n_directions; ++h) {
    to += n_classes * n_rows;
    // Relative to the winner: where it has nearly all probability, v and its mean are nearly the same number.
    const T origin = v[winner.index * v_stride];
    T mean = T(0);
#pragma unroll 4
    for (int64_t k = 0; k < n_classes; ++k) {
      mean += softmax.probability(logit(k)) * (v[k * v_stride] - origin);
    }
#pragma unroll 4
    for (int64_t k = 0; k < n_classes; ++k) {
      to[k * n_rows] = trust * softmax.probability(logit(k)) * ((v[k * v_stride] - origin) - mean);
    }
    v += lines.direction_stride;
  }
  return trust * ((softmax.largest - label) + log1p_nonnegative(softmax.rest));
}

template <class T>
__global__ void __launch_bounds__(kLineBlock, 1) factors_kernel(Lines<T> lines) {
  LAPAL_SHARED(double, scratch, kLineBlock / kWarpSize);
  const int64_t n_rows = lines.logits.n_rows;
  for (int64_t tile = blockIdx.x; tile < line_tiles(n_rows); tile += gridDim.x) {
    const int64_t n = tile * kLineBlock + threadIdx.x;
    const double own = n < n_rows ? double(factors_of_row(lines, n)) : 0.0;
    const double loss = block_reduce<kLineBlock>(own, 0.0, Sum(), scratch);
    if (threadIdx.x == 0) {
      lines.losses[tile] = loss;
    }
  }
}

template <class T>
struct Product {
  PaddedRows<T> features;  // transposed, [D, N]
  PaddedRows<T> factors;   // [(1 + H) C, N]
  EvaluationParts parts;   // of N, with the padding
  double* partial_sums;    // [parts, (1 + H) C, D]

  __host__ __device__ int64_t feature_tiles() const {
    return (features.n_rows + kProductRows - 1) / kProductRows;
  }
  __host__ __device__ int64_t n_tiles() const {
    return feature_tiles() * ((factors.n_rows + ProductTile<T>::kCols - 1) / ProductTile<T>::kCols);
  }
};

// Writes the sums of the first run of a part, and adds those of the others. `to` is the first number of a tile with
// `features` x `lines` results. Each number in memory belongs to one thread.
template <class T>
__device__ __forceinline__ void add_run(const typename ProductTile<T>::Sums& sums, bool is_first, int features,
                                        int lines, int64_t n_features, double* to) {
  using Tile = ProductTile<T>;
#pragma unroll
  for (int j = 0; j < Tile::kThreadCols; ++j) {
    const int line = Tile::col(j);
#pragma unroll
    for (int i = 0; i < kThreadRows; ++i) {
      const int feature = Tile::row(i);
      if (line < lines && feature < features) {
        double* number = to + line * n_features + feature;
        const double sum = double(sums[i][j]);
        if (is_first) {
          *number = sum;
        } else {
          *number += sum;
        }
      }
    }
  }
}

template <class T>
__global__ void __launch_bounds__(kProductBlock) product_kernel(Product<T> product) {
  using Tile = ProductTile<T>;
  using Features = RowsOfTile<T, kProductRows>;
  using Factors = RowsOfTile<T, Tile::kCols>;
  using Packed = typename Tile::Packed;
  LAPAL_SHARED(Packed, feature_memory, kProductDepth * Features::kLine);
  LAPAL_SHARED(Packed, factor_memory, kProductDepth * Factors::kLine);
  const int64_t feature_tiles = product.feature_tiles(), n_tiles = product.n_tiles();
  for (int64_t pair = blockIdx.x; pair < n_tiles * product.parts.n_parts; pair += gridDim.x) {
    const int64_t part = pair / n_tiles, tile = pair % n_tiles;
    const int64_t first_feature = tile % feature_tiles * kProductRows;
    const int64_t first_line = tile / feature_tiles * Tile::kCols;
    const int64_t start = product.parts.start(part), end = product.parts.end(part);
    const int64_t n_features = product.features.n_rows, n_lines = product.factors.n_rows;
    const int features = int(n_features - first_feature < kProductRows ? n_features - first_feature : kProductRows);
    const int lines = int(n_lines - first_line < Tile::kCols ? n_lines - first_line : Tile::kCols);
    double* to = product.partial_sums + (part * n_lines + first_line) * n_features + first_feature;
    for (int64_t run = start; run < end; run += kRunRows) {
      typename Tile::Sums sums = {};
      add_products(Features(product.features, first_feature), Factors(product.factors, first_line), run,
                   run + kRunRows < end ? run + kRunRows : end, feature_memory, factor_memory, sums);
      add_run<T>(sums, run == start, features, lines, n_features, to);
    }
  }
}

template <class T>
struct Results {
  const double* losses;  // [tiles]
  int64_t n_tiles;
  const double* partial_sums;  // [parts, gradient and products]
  int64_t n_parts;
  double* loss;
  T* gradient;
  int64_t n_gradient;  // numbers
  T* products;
  int64_t n_products;  // numbers
};

// A result per thread; the first block also adds the losses.
template <class T>
__global__ void __launch_bounds__(kPointBlock, 1) add_results_kernel(Results<T> all) {
  LAPAL_SHARED(double, scratch, kPointWarps);
  if (blockIdx.x == 0) {
    double loss = 0.0;
    for (int64_t tile = threadIdx.x; tile < all.n_tiles; tile += kPointBlock) {
      loss += all.losses[tile];
    }
    loss = block_reduce<kPointBlock>(loss, 0.0, Sum(), scratch);
    if (threadIdx.x == 0) {
      *all.loss = loss;
    }
  }
  const int64_t n_results = all.n_gradient + all.n_products, step = int64_t(gridDim.x) * kPointBlock;
  for (int64_t i = int64_t(blockIdx.x) * kPointBlock + threadIdx.x; i < n_results; i += step) {
    double sum = 0.0;
    for (int64_t part = 0; part < all.n_parts; ++part) {
      sum += all.partial_sums[part * n_results + i];
    }
    T* to = i < all.n_gradient ? all.gradient + i : all.products + (i - all.n_gradient);
    *to = T(sum);
  }
}

}  // namespace lapal_ext
