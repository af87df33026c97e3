// Inner products of the rows of two matrices: the matrix product rows points^T.
//
//   out_ne = sum_d rows_nd points_ed
//
// Shapes: rows [N, D], points [E, D] -> [N, E]; any strides.
//
// Layout: points are in lanes. A block of points is packed in panels [panel][depth][kPanel] that stay in the
// second-level cache for many groups of rows (cpu/gemm/tile.h). A group of rows is copied to a padded buffer, so the
// tile has one layout for all inputs. For few rows, packing the points costs more than it saves. Then the points are
// read in place: as panels if they have that layout (a transposed matrix), with prefetching; or, for very few rows, as
// dot products.
//
// Parallel over pairs (block of points, block of row groups). Each worker packs its own points. The order of every sum
// depends on D only (one order for dot products, one for panels), so equal points have equal products for any number of
// threads.
//
// Why not torch's product: the BLAS in torch selects its code by the vendor of the processor. On other vendors it
// reaches less than half of the rate of AVX-512, and equal points may get products that differ by rounding.
//
// Limit: arithmetic, N E D multiply-adds.
#include "cpu/ops/inner_products.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>

#include "cpu/gemm/dots.h"
#include "cpu/gemm/packing.h"
#include "cpu/gemm/tile.h"
#include "cpu/simd/lanes.h"
#include "cpu/simd/scratch.h"
#include "torch/arguments/inner_products.h"
#include "torch/dispatch.h"
#include "torch/parallel_tiles.h"
#include "torch/recycled_memory.h"

namespace {

using namespace lapal_ext;
using torch::stable::Tensor;

constexpr int64_t kDotRows = 10;            // up to here dot products, unless the points have the layout of panels
constexpr int64_t kInPlaceRows = 112;       // up to here, points with the layout of panels are read in place,
constexpr int64_t kInPlaceBytes = 1 << 19;  // unless their lines spread over more memory than this
constexpr int64_t kBlockPanels = 8;         // at most: 384 KiB of packed points, part of a second-level cache
constexpr int64_t kBlockGroups = 16;        // row groups of one task
constexpr int kHeightStep = 4;              // between the heights of tiles: 2, 6, 10 and 14 rows
constexpr int64_t kGrainWork = 1 << 17;     // multiply-adds per worker; with fewer, starting the worker costs more

template <class T>
struct Product {
  Matrix<T> rows;
  Matrix<T> points;
  int64_t depth;
  Part part;
  int64_t block_points;  // panels of a block times kPanel
  T* out;                // [N, E]
};

// A worker's packed block of points, and its group of rows.
template <class T>
struct Buffers {
  T* panels;
  T* group;
};

// The numbers behind them.
template <class T>
struct Memory {
  Memory(int64_t panels_size, int64_t group_size) : panels(panels_size), group(group_size) {}
  explicit operator bool() const {
    return panels && group;
  }

  Scratch<T> panels, group;
};

// Stores or adds one tile. Rows and points after the last are skipped.
template <int kRows, class T>
LAPAL_HD void store_tile(const Product<T>& product, const T* tile, int64_t row, int64_t point, bool first_chunk) {
  const int64_t height = std::min<int64_t>(kRows, product.rows.n_rows - row);
  const int64_t width = std::min<int64_t>(kPanel<T>, product.points.n_rows - point);
  for (int64_t r = 0; r < height; ++r) {
    T* out = product.out + (row + r) * product.points.n_rows + point;
    const T* sums = tile + r * kPanel<T>;
    if (first_chunk) {
#pragma omp simd
      for (int64_t j = 0; j < width; ++j) {
        out[j] = sums[j];
      }
    } else {
#pragma omp simd
      for (int64_t j = 0; j < width; ++j) {
        out[j] += sums[j];
      }
    }
  }
}

// A block of points, and a range of features.
struct Chunk {
  int64_t first_point;
  int64_t first_packed;  // points before it are read in place
  int64_t last_point;
  int64_t start;
  int64_t depth;

  // Offset of the panel of a packed point.
  LAPAL_HD int64_t offset(int64_t point) const {
    return (point - first_packed) * depth;
  }
};

// Products of `height` rows from `row` with one chunk. An incomplete last group uses the smallest tile that holds it:
// with 14 rows at a time, 100 rows would cost as much as 112.
template <int kRows, class T>
LAPAL_HD void multiply_rows(const Product<T>& product, const Chunk& chunk, int64_t row, int64_t height,
                            const Buffers<T>& buffers) {
  if constexpr (kRows > kHeightStep) {
    if (height <= kRows - kHeightStep) {
      return multiply_rows<kRows - kHeightStep>(product, chunk, row, height, buffers);
    }
  }
  const Matrix<T>& points = product.points;
  pack_group<kRows>(product.rows, row, chunk.start, chunk.depth, buffers.group);
  const int64_t last_point = product.part == Part::lower ? std::min(chunk.last_point, row + height) : chunk.last_point;
  for (int64_t point = chunk.first_point; point < last_point; point += kPanel<T>) {
    alignas(kBlockBytes) T tile[kRows * kPanel<T>];
    if (point < chunk.first_packed) {
      const T* panel = points.data + point + chunk.start * points.feature_stride;
      multiply_lines<kRows>(buffers.group, kGroupStride<T>, panel, chunk.depth, tile, points.feature_stride);
    } else {
      multiply_panel<kRows>(buffers.group, kGroupStride<T>, buffers.panels + chunk.offset(point), chunk.depth, tile);
    }
    store_tile<kRows>(product, tile, row, point, chunk.start == 0);
  }
}

// Products of row groups [begin, end) with one block of points.
template <int kRows, class T>
LAPAL_HD void multiply_block(const Product<T>& product, int64_t block, int64_t begin, int64_t end,
                             const Buffers<T>& buffers) {
  const Matrix<T>& points = product.points;
  Chunk chunk;
  chunk.first_point = block * product.block_points;
  chunk.last_point = std::min(chunk.first_point + product.block_points, points.n_rows);
  // Points with the layout of panels are packed only if many rows use them.
  const int64_t n_rows = (end - begin) * kRows, line_bytes = points.feature_stride * int64_t(sizeof(T));
  const bool in_place = points.row_stride == 1 && n_rows <= kInPlaceRows && n_rows * line_bytes <= kInPlaceBytes;
  const int64_t whole_panels = (chunk.last_point - chunk.first_point) / kPanel<T>;
  chunk.first_packed = chunk.first_point + (in_place ? whole_panels * kPanel<T> : 0);
  for (chunk.start = 0; chunk.start < product.depth; chunk.start += kDepth) {
    chunk.depth = std::min(kDepth, product.depth - chunk.start);
    if (points.row_stride == 1) {
      pack_lines(points, chunk.first_packed, chunk.last_point, chunk.start, chunk.depth, buffers.panels);
    } else {
      pack_points(points, chunk.first_packed, chunk.last_point, chunk.start, chunk.depth, buffers.panels);
    }
    for (int64_t group = begin; group < end; ++group) {
      const int64_t height = std::min<int64_t>(kRows, product.rows.n_rows - group * kRows);
      multiply_rows<kRows>(product, chunk, group * kRows, height, buffers);
    }
  }
}

// All rows with points [begin, end), contiguous along the features.
template <class T>
LAPAL_HD void multiply_few_rows(const Product<T>& product, int64_t begin, int64_t end) {
  for (int64_t e = begin; e < end; ++e) {
    const T* point = product.points.data + e * product.points.row_stride;
    for (int64_t n = 0; n < product.rows.n_rows; ++n) {
      product.out[n * product.points.n_rows + e] =
          dot(product.rows.data + n * product.rows.row_stride, point, product.depth);
    }
  }
}

#define LAPAL_PRODUCT_KERNELS(T)                                                                              \
  LAPAL_CLONES void few_rows_kernel(const Product<T>& product, int64_t begin, int64_t end) {                  \
    multiply_few_rows(product, begin, end);                                                                   \
  }                                                                                                           \
  LAPAL_AVX512 void avx512_kernel(const Product<T>& product, int64_t block, int64_t begin, int64_t end,       \
                                  const Buffers<T>& buffers) {                                                \
    multiply_block<kAvx512Rows>(product, block, begin, end, buffers);                                         \
  }                                                                                                           \
  LAPAL_NOT_AVX512 void portable_kernel(const Product<T>& product, int64_t block, int64_t begin, int64_t end, \
                                        const Buffers<T>& buffers) {                                          \
    multiply_block<kPortableRows>(product, block, begin, end, buffers);                                       \
  }
LAPAL_PRODUCT_KERNELS(float)
LAPAL_PRODUCT_KERNELS(double)
#undef LAPAL_PRODUCT_KERNELS

// Whether the product is computed as dot products, which read both matrices along the features.
bool takes_dots(int64_t n_rows, int64_t point_stride) {
  return n_rows <= kDotRows && point_stride != 1;
}

template <class T>
void multiply_panels(Product<T> product) {
  const int64_t n_rows = product.rows.n_rows, n_points = product.points.n_rows;
  const int group_rows = rows_of_group();
  const int64_t n_groups = (n_rows + group_rows - 1) / group_rows;
  const int64_t row_blocks = (n_groups + kBlockGroups - 1) / kBlockGroups;
  // Blocks of equal size, so that their tasks take equal time.
  const int64_t n_panels = (n_points + kPanel<T> - 1) / kPanel<T>;
  const int64_t n_blocks = (n_panels + kBlockPanels - 1) / kBlockPanels;
  const int64_t block_points = (n_panels + n_blocks - 1) / n_blocks * kPanel<T>;
  product.block_points = block_points;
  const int64_t n_tasks = n_blocks * row_blocks;
  const int64_t work = kBlockGroups * group_rows * block_points * product.depth;
  const int64_t panels_size = block_points * std::min(kDepth, product.depth);
  const auto make_memory = [&] { return Memory<T>(panels_size, group_rows * kGroupStride<T>); };
  parallel_tiles(n_tasks, 1 + kGrainWork / work, kOp, make_memory, [&](int64_t begin, int64_t end, const auto& memory) {
    const Buffers<T> buffers{memory.panels.data(), memory.group.data()};
    while (begin < end) {  // all row groups of this worker for one block of points, which is packed once
      const int64_t block = begin / row_blocks, base = block * row_blocks;
      const int64_t stop = std::min(end, base + row_blocks);
      const int64_t first_group = (begin - base) * kBlockGroups;
      const int64_t last_group = std::min((stop - base) * kBlockGroups, n_groups);
      if (has_avx512()) {
        avx512_kernel(product, block, first_group, last_group, buffers);
      } else {
        portable_kernel(product, block, first_group, last_group, buffers);
      }
      begin = stop;
    }
  });
}

}  // namespace

namespace lapal_ext {

template <class T>
void multiply(const Matrix<T>& rows, const Matrix<T>& points, int64_t depth, T* out, Part part) {
  if (rows.n_rows == 0 || points.n_rows == 0 || depth == 0) {
    std::fill(out, out + rows.n_rows * points.n_rows, T(0));
    return;
  }
  const Product<T> product{rows, points, depth, part, 0, out};
  const bool contiguous = rows.feature_stride == 1 && points.feature_stride == 1;
  if (!contiguous || !takes_dots(rows.n_rows, points.row_stride)) {
    return multiply_panels(product);
  }
  torch::stable::parallel_for(0, points.n_rows, 1 + kGrainWork / (rows.n_rows * depth + 1),
                              [&](int64_t begin, int64_t end) { few_rows_kernel(product, begin, end); });
}

template void multiply(const Matrix<float>&, const Matrix<float>&, int64_t, float*, Part);
template void multiply(const Matrix<double>&, const Matrix<double>&, int64_t, double*, Part);

}  // namespace lapal_ext

namespace {

Tensor inner_products_cpu(const Tensor& rows, const Tensor& points) {
  const InnerProductsArguments call = check_inner_products(rows, points);
  const int64_t n_rows = call.n_rows, n_points = call.n_points;

  Tensor out = recycled_empty(rows, {n_rows, n_points});
  const bool dots = takes_dots(n_rows, points.stride(0));
  const Tensor dense_rows = dots ? torch::stable::contiguous(rows) : rows;
  const Tensor dense_points = dots ? torch::stable::contiguous(points) : points;
  dispatch_floating(call.dtype, kOp, [&](auto tag) {
    using scalar_t = typename decltype(tag)::type;
    multiply(matrix_of<scalar_t>(dense_rows), matrix_of<scalar_t>(dense_points), call.n_features,
             out.mutable_data_ptr<scalar_t>());
  });
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(lapal_ext, CPU, m) {
  m.impl("inner_products", TORCH_BOX(&inner_products_cpu));
}
