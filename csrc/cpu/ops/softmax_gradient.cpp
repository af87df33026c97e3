// Value, gradient and Hessian products of the cross-entropy of a linear softmax layer whose logits are known.
//
//   L = sum_n t_n (log sum_k exp(z_nk) - z_n[y_n])
//   gradient = sum_n t_n (p_n - e(y_n)) x_n^T,  H V = sum_n t_n (p_n * (v_n - p_n.v_n)) x_n^T,  p_n = softmax(z_n)
//
// Shapes: features x [N, D], logits z [C, N], targets y [N], trust t [N], directions v [H, C, N]
//         -> double, [C, D], [H, C, D].
//
// Layout: first the factors of x_n, a matrix [(1 + H) C, N], with rows in lanes (cpu/passes/class_lines.h). Then their
// product with the features. Features are in lanes: kDepth rows of a block of features are packed as panels, which stay
// in second-level cache for all classes, and a few classes at a time are multiplied with a panel in registers
// (cpu/gemm/tile.h). For few lines of factors, packing costs more than it saves, and contiguous features are read in
// place. A panel may be mostly empty: a bias is one feature more than a whole number of panels. Such last features are
// dot products with the lines of the factors.
//
// Sums over the rows: in T within kDepth rows, then in double.
//
// Parallel over tiles of rows for the factors, then over panels and blocks of classes for the product. The order of
// every sum depends on N only, so the result is the same for any number of threads.
//
// Limit: arithmetic, (1 + H) N C D multiply-adds and N C exponentials. The features are read once per kBlockClasses
// classes.
#include "torch/arguments/softmax_gradient.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <tuple>
#include <vector>

#include "cpu/gemm/dots.h"
#include "cpu/gemm/packing.h"
#include "cpu/gemm/tile.h"
#include "cpu/passes/class_lines.h"
#include "cpu/simd/scratch.h"
#include "torch/dispatch.h"
#include "torch/parallel_tiles.h"
#include "torch/rows.h"

namespace {

using namespace lapal_ext;
using torch::stable::Tensor;

constexpr int64_t kGrainLogits = 1 << 14;           // per worker; with fewer, starting the worker costs more
constexpr int64_t kGrainWork = 1 << 17;             // multiply-adds per worker, likewise
constexpr int64_t kBlockPanels = 8;                 // at most: 384 KiB of packed features, part of a second-level cache
constexpr int64_t kBlockClasses = 8 * kAvx512Rows;  // lines of factors of one task
constexpr int64_t kFewFeatures = 4;                 // of a last panel: up to here, dot products
constexpr int64_t kInPlaceLines = 2 * kAvx512Rows;  // of factors: up to here, features are read in place
constexpr int kHeightStep = 4;                      // between the heights of tiles: 2, 6, 10 and 14 lines

// Distance between the lines of sums of a block.
template <class T>
constexpr int64_t kSumsStride = kBlockPanels * kPanel<T>;

template <class T>
struct Rows {
  const T* logits;      // [C, N]
  const T* directions;  // [H, C, N]
  const int64_t* targets;
  const T* trust;
  int64_t n_rows, n_classes, n_directions;
  T* factors;      // [(1 + H) C, stride]
  int64_t stride;  // an odd number of cache lines, so that lines do not share a few cache sets
};

// The factors of the rows of one tile; returns their loss.
template <class T>
LAPAL_HD double factors_of_tile(const Rows<T>& rows, int64_t start) {
  const int64_t n_rows = rows.n_rows, n_classes = rows.n_classes, stride = rows.stride;
  const int64_t count = std::min(kLineRows, n_rows - start);
  const T *logits = rows.logits + start, *trust = rows.trust + start;
  T* factors = rows.factors + start;
  LineSoftmax<T> softmax;
  softmax.set(n_classes, count, [=](int64_t k, int64_t i) { return logits[k * n_rows + i]; }, factors, stride);

  for (int64_t h = 0; h < rows.n_directions; ++h) {
    const T* direction = rows.directions + h * n_classes * n_rows + start;
    T* product = factors + (1 + h) * n_classes * stride;
    // Relative to the winner: where it has nearly all probability, v and its mean are nearly the same number.
    alignas(kBlockBytes) T origin[kLineRows];
    alignas(kBlockBytes) T mean[kLineRows];
    for (int64_t i = 0; i < count; ++i) {
      origin[i] = direction[softmax.winner[i] * n_rows + i];
      mean[i] = T(0);
    }
    for (int64_t k = 0; k < n_classes; ++k) {
      const T *v = direction + k * n_rows, *e = factors + k * stride;
#pragma omp simd
      for (int64_t i = 0; i < count; ++i) {
        mean[i] += e[i] * softmax.inverse[i] * (v[i] - origin[i]);
      }
    }
    for (int64_t k = 0; k < n_classes; ++k) {
      const T *v = direction + k * n_rows, *e = factors + k * stride;
      T* to = product + k * stride;
#pragma omp simd
      for (int64_t i = 0; i < count; ++i) {
        to[i] = trust[i] * (e[i] * softmax.inverse[i]) * ((v[i] - origin[i]) - mean[i]);
      }
    }
  }

  alignas(kBlockBytes) T loss[kLineRows];
  alignas(kBlockBytes) T label[kLineRows];
  for (int64_t i = 0; i < count; ++i) {
    label[i] = logits[rows.targets[start + i] * n_rows + i];
  }
#pragma omp simd
  for (int64_t i = 0; i < count; ++i) {
    loss[i] = trust[i] * ((softmax.largest[i] - label[i]) + log1p_nonnegative(softmax.rest[i]));
  }
  for (int64_t k = 0; k < n_classes; ++k) {
    T* e = factors + k * stride;
#pragma omp simd
    for (int64_t i = 0; i < count; ++i) {
      e[i] *= trust[i] * softmax.inverse[i];
    }
  }
  // p - 1 of the target. If it wins, that is a sum over the other classes, and does not cancel.
  for (int64_t i = 0; i < count; ++i) {
    T& factor = factors[rows.targets[start + i] * stride + i];
    const bool wins = label[i] >= softmax.largest[i];
    factor = wins ? -trust[i] * (softmax.rest[i] * softmax.inverse[i]) : factor - trust[i];
  }
  return sum_of_line(loss, count);
}

template <class T>
struct Product {
  Matrix<T> factors;   // [(1 + H) C, N]
  Matrix<T> features;  // transposed, [D, N]
  int64_t n_rows;      // N
  int64_t n_classes;   // C
  T* gradient;         // [C, D]
  T* products;         // [H C, D]

  LAPAL_HD T* out(int64_t line) const {
    return line < n_classes ? gradient + line * features.n_rows : products + (line - n_classes) * features.n_rows;
  }
};

// A worker's packed features, a group of factors, and its sums.
template <class T>
struct Buffers {
  T* panels;
  T* group;
  double* sums;
};

// The numbers behind them.
template <class T>
struct Memory {
  Memory()
      : panels(kBlockPanels * kPanel<T> * kDepth),
        group(kAvx512Rows * kGroupStride<T>),
        sums(kBlockClasses * kSumsStride<T>) {}
  explicit operator bool() const {
    return panels && group && sums;
  }

  Scratch<T> panels, group;
  Scratch<double> sums;
};

// One block of factors times one block of features.
struct Block {
  int64_t first_line, last_line;
  int64_t first_feature, last_feature;
  int64_t first_packed;  // features before it are read in place
  int64_t start, depth;  // rows
};

// Adds the products of `height` lines from `line` on. An incomplete last group uses the smallest tile that holds it.
template <int kRows, class T>
LAPAL_HD void multiply_lines_of_block(const Product<T>& product, const Block& block, int64_t line, int64_t height,
                                      const Buffers<T>& buffers) {
  if constexpr (kRows > kHeightStep) {
    if (height <= kRows - kHeightStep) {
      return multiply_lines_of_block<kRows - kHeightStep>(product, block, line, height, buffers);
    }
  }
  pack_group<kRows>(product.factors, line, block.start, block.depth, buffers.group);
  for (int64_t feature = block.first_feature; feature < block.last_feature; feature += kPanel<T>) {
    alignas(kBlockBytes) T tile[kRows * kPanel<T>];
    if (feature < block.first_packed) {
      const int64_t line_stride = product.features.feature_stride;
      const T* panel = product.features.data + feature + block.start * line_stride;
      multiply_lines<kRows>(buffers.group, kGroupStride<T>, panel, block.depth, tile, line_stride);
    } else {
      const T* panel = buffers.panels + (feature - block.first_packed) * block.depth;
      multiply_panel<kRows>(buffers.group, kGroupStride<T>, panel, block.depth, tile);
    }
    const int64_t place = (line - block.first_line) * kSumsStride<T> + feature - block.first_feature;
    for (int64_t r = 0; r < std::min<int64_t>(kRows, height); ++r) {
      double* sums = buffers.sums + place + r * kSumsStride<T>;
#pragma omp simd
      for (int j = 0; j < kPanel<T>; ++j) {
        sums[j] += double(tile[r * kPanel<T> + j]);
      }
    }
  }
}

// The same for a few features, whose columns are packed one after the other.
template <class T>
LAPAL_HD void multiply_few_features(const Product<T>& product, const Block& block, const Buffers<T>& buffers) {
  const Matrix<T>& features = product.features;
  for (int64_t feature = block.first_feature; feature < block.last_feature; ++feature) {
    const T* from = features.data + feature * features.row_stride + block.start * features.feature_stride;
    for (int64_t i = 0; i < block.depth; ++i) {
      buffers.panels[i] = from[i * features.feature_stride];
    }
    for (int64_t line = block.first_line; line < block.last_line; ++line) {
      const int64_t place = (line - block.first_line) * kSumsStride<T> + feature - block.first_feature;
      const T* factors = product.factors.data + line * product.factors.row_stride + block.start;
      buffers.sums[place] += double(dot(factors, static_cast<const T*>(buffers.panels), block.depth));
    }
  }
}

template <int kRows, class T>
LAPAL_HD void multiply_block(const Product<T>& product, Block block, const Buffers<T>& buffers) {
  const int64_t width = block.last_feature - block.first_feature;
  // Packing features that are contiguous pays only if many lines use them.
  const bool in_place = product.features.row_stride == 1 && block.last_line - block.first_line <= kInPlaceLines;
  block.first_packed = block.first_feature + (in_place ? width / kPanel<T> * kPanel<T> : 0);
  for (int64_t line = 0; line < block.last_line - block.first_line; ++line) {
    std::fill_n(buffers.sums + line * kSumsStride<T>, round_up(width, kPanel<T>), 0.0);
  }
  for (block.start = 0; block.start < product.n_rows; block.start += kDepth) {
    block.depth = std::min(kDepth, product.n_rows - block.start);
    if (width <= kFewFeatures) {
      multiply_few_features(product, block, buffers);
      continue;
    }
    if (product.features.row_stride == 1) {
      pack_lines(product.features, block.first_packed, block.last_feature, block.start, block.depth, buffers.panels);
    } else {
      pack_points(product.features, block.first_packed, block.last_feature, block.start, block.depth, buffers.panels);
    }
    for (int64_t line = block.first_line; line < block.last_line; line += kRows) {
      multiply_lines_of_block<kRows>(product, block, line, std::min<int64_t>(kRows, block.last_line - line), buffers);
    }
  }
  for (int64_t line = block.first_line; line < block.last_line; ++line) {
    const double* sums = buffers.sums + (line - block.first_line) * kSumsStride<T>;
    T* out = product.out(line) + block.first_feature;
    for (int64_t j = 0; j < width; ++j) {
      out[j] = T(sums[j]);
    }
  }
}

// The columns of panels: all whole ones, and the features that remain.
struct Panels {
  int64_t n_features, size, count;

  template <class T>
  static Panels of(int64_t n_features, Tag<T>) {
    return {n_features, kPanel<T>, (n_features + kPanel<T> - 1) / kPanel<T>};
  }
  // Panels that are multiplied as panels: few last features are not.
  int64_t packed() const {
    const int64_t last = n_features - (count - 1) * size;
    return last <= kFewFeatures ? count - 1 : count;
  }
};

#define LAPAL_GRADIENT_KERNELS(T)                                                                                   \
  LAPAL_CLONES void factors_kernel(const Rows<T>& rows, int64_t begin, int64_t end, double* loss) {                 \
    for (int64_t tile = begin; tile < end; ++tile) {                                                                \
      loss[tile] = factors_of_tile(rows, tile * kLineRows);                                                         \
    }                                                                                                               \
  }                                                                                                                 \
  LAPAL_AVX512 void avx512_kernel(const Product<T>& product, const Block& block, const Buffers<T>& buffers) {       \
    multiply_block<kAvx512Rows>(product, block, buffers);                                                           \
  }                                                                                                                 \
  LAPAL_NOT_AVX512 void portable_kernel(const Product<T>& product, const Block& block, const Buffers<T>& buffers) { \
    multiply_block<kPortableRows>(product, block, buffers);                                                         \
  }
LAPAL_GRADIENT_KERNELS(float)
LAPAL_GRADIENT_KERNELS(double)
#undef LAPAL_GRADIENT_KERNELS

// Tasks are pairs (block of lines, panel). A worker takes neighbouring panels together, so that a group of factors that
// it has read serves several.
template <class T>
void multiply_factors(const Product<T>& product) {
  const int64_t n_lines = product.factors.n_rows;
  const Panels panels = Panels::of(product.features.n_rows, Tag<T>{});
  const int64_t n_blocks = (n_lines + kBlockClasses - 1) / kBlockClasses;
  const int64_t work = std::min(n_lines, kBlockClasses) * panels.size * product.n_rows;
  const auto make_memory = [] { return Memory<T>(); };
  parallel_tiles(n_blocks * panels.count, 1 + kGrainWork / work, kOp, make_memory,
                 [&](int64_t begin, int64_t end, const Memory<T>& memory) {
                   const Buffers<T> buffers{memory.panels.data(), memory.group.data(), memory.sums.data()};
                   while (begin < end) {
                     const int64_t index = begin / panels.count, base = index * panels.count;
                     const int64_t first = begin - base, stop = std::min(end - base, panels.count);
                     const int64_t packed = std::max<int64_t>(std::min(stop, panels.packed()) - first, 0);
                     // Blocks of equal size; the few last features are a block of their own.
                     const int64_t parts = (packed + kBlockPanels - 1) / kBlockPanels;
                     const int64_t taken = packed == 0 ? 1 : (packed + parts - 1) / parts;
                     const Block block{index * kBlockClasses,
                                       std::min((index + 1) * kBlockClasses, n_lines),
                                       first * panels.size,
                                       std::min((first + taken) * panels.size, panels.n_features),
                                       0,
                                       0,
                                       0};
                     if (has_avx512()) {
                       avx512_kernel(product, block, buffers);
                     } else {
                       portable_kernel(product, block, buffers);
                     }
                     begin += taken;
                   }
                 });
}

// Writes the gradient and the Hessian products, and returns the loss.
template <class T>
double differentiate(Rows<T> rows, const Matrix<T>& features, T* gradient, T* products) {
  const int64_t n_lines = (1 + rows.n_directions) * rows.n_classes;
  const int64_t n_tiles = (rows.n_rows + kLineRows - 1) / kLineRows;
  rows.stride = round_up(rows.n_rows, 2 * kLanes<T>) + kLanes<T>;
  const Scratch<T> factors(n_lines * rows.stride);
  const Scratch<double> losses(n_tiles);
  STD_TORCH_CHECK(factors && losses, kOp, ": out of memory");
  rows.factors = factors.data();
  torch::stable::parallel_for(0, n_tiles, 1 + kGrainLogits / (n_lines * kLineRows),
                              [&](int64_t begin, int64_t end) { factors_kernel(rows, begin, end, losses.data()); });
  multiply_factors<T>(
      {{rows.factors, n_lines, rows.stride, 1}, features, rows.n_rows, rows.n_classes, gradient, products});
  double loss = 0.0;
  for (int64_t tile = 0; tile < n_tiles; ++tile) {
    loss += losses.data()[tile];
  }
  return loss;
}

std::tuple<Tensor, Tensor, Tensor> softmax_gradient_cpu(const Tensor& features, const Tensor& logits,
                                                        const Tensor& targets, const Tensor& trust,
                                                        const Tensor& directions) {
  const SoftmaxGradientArguments call = check_softmax_gradient(features, logits, targets, trust, directions);
  const Tensor dense_logits = torch::stable::contiguous(logits);
  const Tensor dense_directions = torch::stable::contiguous(directions);
  const Tensor dense_targets = torch::stable::contiguous(targets), dense_trust = torch::stable::contiguous(trust);
  check_index_range(dense_targets, call.n_classes, kOp, "targets");
  Tensor loss = torch::stable::new_zeros(logits, {}, ScalarType::Double);
  const std::vector<int64_t> sizes{call.n_classes, call.n_features};
  const std::vector<int64_t> sizes_of_products{call.n_directions, call.n_classes, call.n_features};
  if (call.n_rows == 0) {
    return {loss, torch::stable::new_zeros(features, sizes), torch::stable::new_zeros(features, sizes_of_products)};
  }
  Tensor gradient = torch::stable::new_empty(features, sizes);
  Tensor products = torch::stable::new_empty(features, sizes_of_products);
  dispatch_floating(call.dtype, kOp, [&](auto tag) {
    using scalar_t = typename decltype(tag)::type;
    Rows<scalar_t> rows{};
    rows.logits = dense_logits.const_data_ptr<scalar_t>();
    rows.directions = dense_directions.const_data_ptr<scalar_t>();
    rows.targets = dense_targets.const_data_ptr<int64_t>();
    rows.trust = dense_trust.const_data_ptr<scalar_t>();
    rows.n_rows = call.n_rows;
    rows.n_classes = call.n_classes;
    rows.n_directions = call.n_directions;
    const Matrix<scalar_t> transposed{features.const_data_ptr<scalar_t>(), call.n_features, features.stride(1),
                                      features.stride(0)};
    *loss.mutable_data_ptr<double>() =
        differentiate(rows, transposed, gradient.mutable_data_ptr<scalar_t>(), products.mutable_data_ptr<scalar_t>());
  });
  return {loss, gradient, products};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(lapal_ext, CPU, m) {
  m.impl("softmax_gradient", TORCH_BOX(&softmax_gradient_cpu));
}
