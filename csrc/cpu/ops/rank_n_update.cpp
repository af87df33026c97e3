// Symmetric update of a matrix by b rows.
//
//   out = matrix + sum_t weights_t u_t u_t^T;  triangle u = rows, or u = rows without a triangle.
//
// The result is symmetric to the bit.
//
// Shapes: matrix [D, D], rows [b, D], weights [b], triangle [b, b] -> [D, D].
//
// Layout: the rows are packed in panels [panel][b][kPanel]. The triangular system is solved in each panel, kSolved rows
// at a time: the contribution of all earlier rows is a product (cpu/gemm/tile.h), that of rows in the same group a
// short recursion. Then the lower triangle of the result is computed in tiles, which is half the arithmetic of a
// general product: groups of a few columns of the weighted u, [b][column], times panels. Every tile is added to the
// matrix, stored, and stored again at its mirror image.
//
// Parallel over pairs of row groups. A pair is one group from each end, so all pairs take equal time. The order of
// every sum depends on b only.
//
// Limit: arithmetic, b D^2 / 2 multiply-adds. For few rows it is memory: one read of half the matrix and one write of
// all.
#include "cpu/ops/rank_n_update.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <optional>

#include "cpu/gemm/packing.h"
#include "cpu/gemm/tile.h"
#include "cpu/simd/lanes.h"
#include "cpu/simd/scratch.h"
#include "torch/arguments/rank_n_update.h"
#include "torch/dispatch.h"
#include "torch/parallel_tiles.h"
#include "torch/recycled_memory.h"

namespace {

using namespace lapal_ext;
using torch::stable::Tensor;

constexpr int64_t kGrainWork = 1 << 17;  // multiply-adds per worker; with fewer, starting the worker costs more

template <class T>
struct Update : RankNUpdate<T> {
  T* panels;  // [panel][b][kPanel]
};

// Forward substitution in one panel.
template <int kSolved, class T>
LAPAL_HD void solve_panel(const Update<T>& update, T* panel) {
  const int64_t b = update.n_rows;
  for (int64_t first = 0; first < b; first += kSolved) {
    const int64_t count = std::min<int64_t>(kSolved, b - first);
    const T* triangle = update.triangle + first * b;
    if (count == kSolved) {
      alignas(kBlockBytes) T known[kSolved * kPanel<T>];
      multiply_panel<kSolved>(triangle, b, panel, first, known);
      T* rows = panel + first * kPanel<T>;
#pragma omp simd
      for (int i = 0; i < kSolved * kPanel<T>; ++i) {
        rows[i] -= known[i];
      }
    }
    for (int64_t t = 0; t < count;
         ++t) {  // an incomplete last group has no product: it subtracts all earlier rows here
      T* row = panel + (first + t) * kPanel<T>;
      for (int64_t s = count == kSolved ? first : 0; s < first + t; ++s) {
        const T weight = triangle[t * b + s];
        const T* other = panel + s * kPanel<T>;
#pragma omp simd
        for (int j = 0; j < kPanel<T>; ++j) {
          row[j] -= weight * other[j];
        }
      }
    }
  }
}

// Panels [begin, end) of u.
template <int kSolved, class T>
LAPAL_HD void prepare_panels(const Update<T>& update, int64_t begin, int64_t end) {
  const int64_t panel_size = update.n_rows * kPanel<T>;
  pack_lines(Matrix<T>{update.rows, update.size, 1, update.size}, begin * kPanel<T>,
             std::min(end * kPanel<T>, update.size), 0, update.n_rows, update.panels + begin * panel_size);
  for (int64_t index = begin; index < end && update.triangle != nullptr; ++index) {
    solve_panel<kSolved>(update, update.panels + index * panel_size);
  }
}

// Columns [first, first + kRows) of the weighted u, as [b][kColumnStride]. They are in one panel or in two, and are
// copied in whole vectors. Surplus values are overwritten by the next copy, or are in no column.
template <int kRows, class T>
LAPAL_HD void pack_columns(const Update<T>& update, int64_t first, T* group) {
  constexpr int64_t kWidth = kColumnStride<kRows>;
  const int64_t panel_size = update.n_rows * kPanel<T>;
  const int64_t offset = first % kPanel<T>;
  const int64_t in_panel = kPanel<T> - offset;
  const bool goes_on = in_panel < kRows && first + in_panel < update.size;
  const T* panel = update.panels + first / kPanel<T> * panel_size;
  for (int64_t t = 0; t < update.n_rows; ++t) {
    const T weight = update.weights[t];
    const T* from = panel + t * kPanel<T>;
    T* to = group + t * kWidth;
#pragma omp simd
    for (int64_t row = 0; row < kWidth; ++row) {
      to[row] = weight * from[offset + row];
    }
    if (goes_on) {
#pragma omp simd
      for (int64_t row = 0; row < kWidth; ++row) {
        to[in_panel + row] = weight * from[panel_size + row];
      }
    }
  }
}

// Adds a tile of the lower triangle to the matrix, and mirrors it. kInside: the whole tile is below the diagonal.
template <int kRows, bool kInside, class T>
LAPAL_HD void store_tile(const Update<T>& update, int64_t first, int64_t column, T* tile) {
  const int64_t size = update.size;
  const int64_t height = kInside ? kRows : std::min<int64_t>(kRows, size - first);
  for (int64_t row = 0; row < height; ++row) {
    const int64_t width = kInside ? kPanel<T> : std::min<int64_t>(kPanel<T>, first + row + 1 - column);
    const T* from = update.matrix + (first + row) * size + column;
    T* to = update.out + (first + row) * size + column;
    T* sums = tile + row * kPanel<T>;
#pragma omp simd
    for (int64_t j = 0; j < width; ++j) {
      sums[j] += from[j];
      to[j] = sums[j];
    }
  }
  const int64_t width = kInside ? kPanel<T> : std::min<int64_t>(kPanel<T>, first + height - column);
  for (int64_t j = 0; j < width; ++j) {
    T* to = update.out + (column + j) * size + first;
    if constexpr (kInside) {
      LAPAL_UNROLL
      for (int row = 0; row < kRows; ++row) {
        to[row] = tile[row * kPanel<T> + j];
      }
    } else {
      for (int64_t row = std::max<int64_t>(0, column + j - first); row < height; ++row) {
        to[row] = tile[row * kPanel<T> + j];
      }
    }
  }
}

// Prefetches the memory that a tile is added to and stored in, before its sums are computed. The rows of a matrix are
// too far apart for the hardware prefetcher.
template <int kRows, class T>
LAPAL_HD void prefetch_tile(const Update<T>& update, int64_t first, int64_t column) {
  for (int64_t row = first; row < first + kRows; ++row) {
    for (int64_t j = column; j < column + kPanel<T>; j += kLanes<T>) {
      __builtin_prefetch(update.matrix + row * update.size + j);
      __builtin_prefetch(update.out + row * update.size + j, 1);
    }
  }
  for (int64_t row = column; row < column + kPanel<T>; ++row) {
    __builtin_prefetch(update.out + row * update.size + first, 1);
  }
}

template <int kRows, class T>
LAPAL_HD void update_group(const Update<T>& update, int64_t index, T* group) {
  const int64_t first = index * kRows;
  pack_columns<kRows>(update, first, group);
  for (int64_t column = 0; column < std::min(first + kRows, update.size); column += kPanel<T>) {
    alignas(kBlockBytes) T tile[kRows * kPanel<T>];
    prefetch_tile<kRows>(update, first, column);
    multiply_columns<kRows>(group, update.panels + column * update.n_rows, update.n_rows, tile);
    if (column + kPanel<T> <= first && first + kRows <= update.size) {
      store_tile<kRows, true>(update, first, column, tile);
    } else {
      store_tile<kRows, false>(update, first, column, tile);
    }
  }
}

// Pairs [begin, end) of row groups: one from each end.
template <int kRows, class T>
LAPAL_HD void update_pairs(const Update<T>& update, int64_t begin, int64_t end, T* group) {
  const int64_t n_groups = (update.size + kRows - 1) / kRows;
  for (int64_t pair = begin; pair < end; ++pair) {
    const int64_t partner = n_groups - 1 - pair;
    for (int64_t index = pair; index <= partner; index += std::max<int64_t>(partner - pair, 1)) {
      update_group<kRows>(update, index, group);
    }
  }
}

#define LAPAL_UPDATE_KERNELS(T)                                                                          \
  LAPAL_AVX512 void avx512_panels(const Update<T>& update, int64_t begin, int64_t end) {                 \
    prepare_panels<kAvx512Rows>(update, begin, end);                                                     \
  }                                                                                                      \
  LAPAL_NOT_AVX512 void portable_panels(const Update<T>& update, int64_t begin, int64_t end) {           \
    prepare_panels<kPortableRows>(update, begin, end);                                                   \
  }                                                                                                      \
  LAPAL_AVX512 void avx512_kernel(const Update<T>& update, int64_t begin, int64_t end, T* group) {       \
    update_pairs<kAvx512Rows>(update, begin, end, group);                                                \
  }                                                                                                      \
  LAPAL_NOT_AVX512 void portable_kernel(const Update<T>& update, int64_t begin, int64_t end, T* group) { \
    update_pairs<kPortableRows>(update, begin, end, group);                                              \
  }
LAPAL_UPDATE_KERNELS(float)
LAPAL_UPDATE_KERNELS(double)
#undef LAPAL_UPDATE_KERNELS

// One chunk of rows. With a triangle the chunk is all rows.
template <class T>
void update_with_rows(Update<T> update) {
  const int64_t n_panels = (update.size + kPanel<T> - 1) / kPanel<T>;
  const Scratch<T> panels(n_panels * update.n_rows * kPanel<T> + kColumnStride<kAvx512Rows>);
  STD_TORCH_CHECK(bool(panels), kOp, ": out of memory");
  update.panels = panels.data();
  const int group_rows = rows_of_group();
  const int64_t panel_work = update.n_rows * kPanel<T> * (update.triangle == nullptr ? 1 : update.n_rows / 2 + 1);
  torch::stable::parallel_for(0, n_panels, 1 + kGrainWork / (panel_work + 1), [&](int64_t begin, int64_t end) {
    if (has_avx512()) {
      avx512_panels(update, begin, end);
    } else {
      portable_panels(update, begin, end);
    }
  });
  const int64_t n_groups = (update.size + group_rows - 1) / group_rows;
  const int64_t work = (update.n_rows + 8) * group_rows * update.size;  // a tile without rows costs as much as 8 rows
  parallel_tiles((n_groups + 1) / 2, 1 + kGrainWork / work, kOp,
                 [&] { return Scratch<T>((update.n_rows + 1) * kColumnStride<kAvx512Rows>); },
                 [&](int64_t begin, int64_t end, const Scratch<T>& group) {
                   if (has_avx512()) {
                     avx512_kernel(update, begin, end, group.data());
                   } else {
                     portable_kernel(update, begin, end, group.data());
                   }
                 });
}

}  // namespace

namespace lapal_ext {

template <class T>
void update_matrix(const RankNUpdate<T>& given) {
  if (given.size == 0) {
    return;
  }
  Update<T> update{given, nullptr};
  if (update.triangle != nullptr || update.n_rows <= kDepth) {
    return update_with_rows(update);
  }
  const int64_t n_rows = update.n_rows;  // the panels of a chunk stay in the second-level cache
  for (int64_t start = 0; start < n_rows; start += kDepth) {
    update.n_rows = std::min(kDepth, n_rows - start);
    update_with_rows(update);
    update.matrix = update.out;  // in place from here on: one thread reads and writes each element
    update.rows += kDepth * update.size;
    update.weights += kDepth;
  }
}

template void update_matrix(const RankNUpdate<float>&);
template void update_matrix(const RankNUpdate<double>&);

}  // namespace lapal_ext

namespace {

Tensor rank_n_update_cpu(const Tensor& matrix, const Tensor& rows, const Tensor& weights,
                         const std::optional<Tensor>& triangle) {
  const RankNUpdateArguments call = check_rank_n_update(matrix, rows, weights, triangle);
  const int64_t n_rows = call.n_rows, size = call.n_features;

  Tensor out = recycled_empty(matrix, {size, size});
  const Tensor dense_matrix = torch::stable::contiguous(matrix);
  const Tensor dense_rows = torch::stable::contiguous(rows);
  const Tensor dense_weights = torch::stable::contiguous(weights);
  const std::optional<Tensor> dense_triangle =
      triangle ? std::optional<Tensor>(torch::stable::contiguous(*triangle)) : std::nullopt;
  dispatch_floating(call.dtype, kOp, [&](auto tag) {
    using scalar_t = typename decltype(tag)::type;
    update_matrix(RankNUpdate<scalar_t>{dense_matrix.const_data_ptr<scalar_t>(), dense_rows.const_data_ptr<scalar_t>(),
                                        dense_weights.const_data_ptr<scalar_t>(),
                                        dense_triangle ? dense_triangle->const_data_ptr<scalar_t>() : nullptr, size,
                                        n_rows, out.mutable_data_ptr<scalar_t>()});
  });
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(lapal_ext, CPU, m) {
  m.impl("rank_n_update", TORCH_BOX(&rank_n_update_cpu));
}
