// One pick of k-centre greedy: one pass over the pool.
//
//   nearest_n = min(nearest_n, min_l sum_j ((x_nj - c_lj) scale_j)^2)
//
// The pick is the free row with the largest nearest_n.
//
// Shapes: pool x [N, D] in any storage dtype, centres c [L, D], scale [D], nearest and taken [N].
//
// Layout: pool rows are contiguous. Differences are squared and summed as they are, in one fixed order, so that a copy
// of a centre has distance zero and equal rows tie; |x|^2 + |c|^2 - 2 x.c would cancel. Centres are taken a few at a
// time, and a tile of rows stays in the second-level cache until it has been compared with all of them.
//
// Parallel over tiles of a fixed size. The best rows of the tiles are compared in order (cpu/pool/rows.h).
//
// Limit: for one centre memory, one read of the pool; for many, three instructions per feature, centre and row.
#include "torch/arguments/nearest_distance_.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <tuple>

#include "cpu/pool/rows.h"
#include "cpu/simd/lanes.h"
#include "torch/dispatch.h"

namespace {

using namespace lapal_ext;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// The data of one pass: pointers and strides of the tensors.
template <class T, class S>
struct Pass {
  PoolRows<S> pool;
  const T* centres;  // [L, D]
  int64_t n_centres;
  const T* scale;
  T* nearest;
  int64_t nearest_stride;
  TakenRows taken;
};

// Lowers `nearest` to the distances from kPoints centres, the first of which is number l.
template <int kPoints, class T, class S>
LAPAL_HD void lower_to(const Pass<T, S>& pass, int64_t l, int64_t start, int64_t rows, T* squares, T* nearest) {
  const T* points[kPoints];
  for (int k = 0; k < kPoints; ++k) {
    points[k] = pass.centres + (l + k) * pass.pool.n_features;
  }
  square_distances(pass.pool, start, rows, points, pass.scale, squares, kMaxTileRows);
  for (int k = 0; k < kPoints; ++k) {
    const T* square = squares + k * kMaxTileRows;
#pragma omp simd
    for (int64_t i = 0; i < rows; ++i) {
      const T lower = square[i] < nearest[i] ? square[i] : nearest[i];
      // A NaN is stored, so that the caller can detect it.
      nearest[i] = square[i] != square[i] ? square[i] : lower;
    }
  }
}

// Rows [start, start + rows); `scratch` holds kPointsAtOnce + 1 lines of kMaxTileRows distances.
template <class T, class S>
LAPAL_HD Best nearest_tile(const Pass<T, S>& pass, int64_t start, int64_t rows, T* scratch) {
  T* squares = scratch + kMaxTileRows;
  T* from = pass.nearest + start * pass.nearest_stride;
  for (int64_t i = 0; i < rows; ++i) {
    scratch[i] = from[i * pass.nearest_stride];
  }
  int64_t l = 0;
  for (; l + kPointsAtOnce <= pass.n_centres; l += kPointsAtOnce) {
    lower_to<kPointsAtOnce>(pass, l, start, rows, squares, scratch);
  }
  for (; l < pass.n_centres; ++l) {
    lower_to<1>(pass, l, start, rows, squares, scratch);
  }
  for (int64_t i = 0; i < rows; ++i) {
    from[i * pass.nearest_stride] = scratch[i];
  }
  Best best;
  for (int64_t i = 0; i < rows; i += kLanes<T>) {
    const int valid = int(std::min<int64_t>(kLanes<T>, rows - i));
    pass.taken.update_best(scratch + i, start + i, valid, best);
  }
  return best;
}

#define LAPAL_NEAREST_KERNEL(T, S)                                                                             \
  LAPAL_CLONES Best nearest_distance_kernel(const Pass<T, S>& pass, int64_t start, int64_t rows, T* scratch) { \
    return nearest_tile(pass, start, rows, scratch);                                                           \
  }
LAPAL_FOR_POOL_TYPES(LAPAL_NEAREST_KERNEL)
#undef LAPAL_NEAREST_KERNEL

std::tuple<Tensor, Tensor> nearest_distance__cpu(const Tensor& pool, const Tensor& centres, const Tensor& scale,
                                                 const Tensor& nearest, const Tensor& taken) {
  const NearestDistanceArguments call = check_nearest_distance(pool, centres, scale, nearest, taken);
  const int64_t n_rows = call.n_rows;

  Tensor index = torch::stable::new_empty(centres, {}, ScalarType::Long);
  Tensor distance = torch::stable::new_empty(centres, {});
  const Tensor dense_pool = with_contiguous_rows(pool);
  const Tensor dense_centres = torch::stable::contiguous(centres);
  const Tensor dense_scale = torch::stable::contiguous(scale);
  dispatch_floating(call.dtype, kOp, [&](auto compute) {
    using scalar_t = typename decltype(compute)::type;
    dispatch_storage(pool.scalar_type(), kOp, [&](auto storage) {
      using storage_t = typename decltype(storage)::type;
      Pass<scalar_t, Bits<storage_t>> pass{};
      pass.pool = rows_of<storage_t>(dense_pool);
      pass.centres = dense_centres.const_data_ptr<scalar_t>();
      pass.n_centres = call.n_centres;
      pass.scale = dense_scale.const_data_ptr<scalar_t>();
      pass.nearest = nearest.mutable_data_ptr<scalar_t>();
      pass.nearest_stride = nearest.stride(0);
      pass.taken = {taken.mutable_data_ptr<bool>(), taken.stride(0)};
      const Best best = take_best<scalar_t>(n_rows, kMaxTileRows, (kPointsAtOnce + 1) * kMaxTileRows, pass.taken, kOp,
                                            [&](int64_t start, int64_t rows, scalar_t* scratch) {
                                              return nearest_distance_kernel(pass, start, rows, scratch);
                                            });
      *index.mutable_data_ptr<int64_t>() = best.index;
      *distance.mutable_data_ptr<scalar_t>() = scalar_t(best.utility);
    });
  });
  return {index, distance};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(lapal_ext, CPU, m) {
  m.impl("nearest_distance_", TORCH_BOX(&nearest_distance__cpu));
}
