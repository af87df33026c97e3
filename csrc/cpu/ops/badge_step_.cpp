// One k-means++ pick of BADGE: one pass over the pool, then a draw.
//
//   |g (x) phi - g* (x) phi*|^2 = |g|^2 |phi|^2 + |g*|^2 |phi*|^2 - 2 (g.g*)(phi.phi*)
//
// A row keeps the smaller of this distance and its distance so far. The draw returns the first row at which the running
// sum of distances exceeds threshold times the total.
//
// Shapes: pool [N, D] in any storage dtype, u = phi* [D], gradient [N, C], g = g* [C], squared_norm and distance [N].
//
// Layout: pool rows are contiguous. Every row of a tile has one dot product with phi* and one with g*, each in an order
// that depends on D or C only. Then the distances are computed with rows in lanes. If there are few classes, or if the
// gradients are class-major, the product with g* also has rows in lanes: a dot product over ten classes would not fill
// a register.
//
// Parallel over tiles of a fixed size. Each tile has a float64 sum of its distances. The draw first finds the tile from
// these sums, then the row inside this one tile, so the result does not depend on the number of threads.
//
// Limit: memory, one read of the pool.
#include "torch/arguments/badge_step_.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <cmath>
#include <limits>
#include <vector>

#include "cpu/gemm/dots.h"
#include "cpu/pool/rows.h"
#include "cpu/simd/lanes.h"
#include "torch/dispatch.h"

namespace {

using namespace lapal_ext;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr double kSamePoint = 16.0;  // a distance below so many eps of its norms is rounding

// The data of one pass: pointers and strides of the tensors.
template <class T, class S>
struct Pass {
  PoolRows<S> pool;
  Direction<T> u;
  const T* gradient;
  int64_t row_stride;
  int64_t class_stride;
  int64_t n_classes;
  const T* g;
  const T* squared_norm;
  int64_t norm_stride;
  T centre_norm;
  T* distance;
  int64_t distance_stride;
};

// gradient . g of the `valid` rows of a block.
template <class T, class S>
LAPAL_HD void multiply_gradients(const Pass<T, S>& pass, int64_t first, int valid, T* products) {
  constexpr int kL = kLanes<T>;
  const T* gradient = pass.gradient + first * pass.row_stride;
  alignas(kBlockBytes) T sums[kL] = {};
  if (pass.class_stride == 1 && pass.n_classes >= 2 * kL) {
    for (int lane = 0; lane < valid; ++lane) {
      sums[lane] = dot(gradient + lane * pass.row_stride, pass.g, pass.n_classes);
    }
  } else {
    for (int64_t k = 0; k < pass.n_classes; ++k) {
      alignas(kBlockBytes) T values[kL];
      load_lanes(gradient + k * pass.class_stride, pass.row_stride, valid, values);
      const T factor = pass.g[k];
#pragma omp simd
      for (int lane = 0; lane < kL; ++lane) {
        sums[lane] += values[lane] * factor;
      }
    }
  }
#pragma omp simd
  for (int lane = 0; lane < kL; ++lane) {
    products[lane] = sums[lane];
  }
}

// Rows [start, start + rows); `scratch` holds kMaxTileRows products. Returns the sum of the new distances.
template <class T, class S>
LAPAL_HD double badge_tile(const Pass<T, S>& pass, int64_t start, int64_t rows, T* scratch) {
  constexpr int kL = kLanes<T>;
  constexpr T kRounding = T(kSamePoint) * std::numeric_limits<T>::epsilon();
  multiply_rows(pass.pool, start, rows, {pass.u}, scratch, kMaxTileRows);
  double sum = 0.0;
  for (int64_t i = 0; i < rows; i += kL) {
    const int valid = int(std::min<int64_t>(kL, rows - i));
    const int64_t first = start + i;
    alignas(kBlockBytes) T along_u[kL];
    alignas(kBlockBytes) T along_g[kL];
    alignas(kBlockBytes) T squared_norm[kL];
    alignas(kBlockBytes) T distance[kL];
    load_lanes(scratch + i, 1, valid, along_u);
    multiply_gradients(pass, first, valid, along_g);
    load_lanes(pass.squared_norm + first * pass.norm_stride, pass.norm_stride, valid, squared_norm);
    T* distances = pass.distance + first * pass.distance_stride;
    load_lanes(distances, pass.distance_stride, valid, distance);
#pragma omp simd
    for (int lane = 0; lane < kL; ++lane) {
      const T norms = squared_norm[lane] + pass.centre_norm;
      const T product = along_g[lane] * along_u[lane];
      const T computed = norms - T(2) * product;
      // A NaN is not rounding: it is stored, so that the caller can detect it.
      const T fresh = computed <= kRounding * norms ? T(0) : computed;
      const T old = distance[lane];
      const T lower = fresh < old ? fresh : old;
      distance[lane] = fresh != fresh ? fresh : lower;
    }
    store_lanes(distance, pass.distance_stride, valid, distances);
    for (int lane = 0; lane < valid; ++lane) {
      sum += double(distance[lane]);
    }
  }
  return sum;
}

#define LAPAL_BADGE_KERNEL(T, S)                                                                           \
  LAPAL_CLONES double badge_step_kernel(const Pass<T, S>& pass, int64_t start, int64_t rows, T* scratch) { \
    return badge_tile(pass, start, rows, scratch);                                                         \
  }
LAPAL_FOR_POOL_TYPES(LAPAL_BADGE_KERNEL)
#undef LAPAL_BADGE_KERNEL

// The first row whose running sum exceeds the target. The target is below the total; `sums` has one sum per tile.
template <class T>
int64_t draw(const T* distance, int64_t stride, int64_t n_rows, const std::vector<double>& sums, double target) {
  double before = 0.0;
  int64_t start = 0;
  for (const double sum : sums) {
    if (before + sum > target) {
      break;
    }
    before += sum;
    start += kMaxTileRows;
  }
  double sum = 0.0;
  for (int64_t n = start; n < n_rows; ++n) {
    sum += double(distance[n * stride]);
    if (before + sum > target) {
      return n;
    }
  }
  return -1;
}

template <class T, class S>
int64_t badge_step_impl(const Pass<T, S>& pass, int64_t n_rows, double threshold) {
  std::vector<double> sums(size_t((n_rows + kMaxTileRows - 1) / kMaxTileRows));
  for_each_tile<T>(n_rows, kMaxTileRows, kMaxTileRows, kOp, [&](int64_t tile, int64_t start, int64_t rows, T* scratch) {
    sums[size_t(tile)] = badge_step_kernel(pass, start, rows, scratch);
  });
  double total = 0.0;
  for (const double sum : sums) {
    total += sum;
  }
  // Not `total <= 0`: if a distance is NaN, the total is NaN and there is no draw.
  if (!(total > 0.0)) {
    return -1;
  }
  // A threshold just below one may round to the total, and no running sum exceeds the total.
  const double target = std::min(std::nextafter(total, 0.0), threshold * total);
  return draw(pass.distance, pass.distance_stride, n_rows, sums, target);
}

Tensor badge_step__cpu(const Tensor& pool, const Tensor& u, const Tensor& offset, const Tensor& gradient,
                       const Tensor& g, const Tensor& squared_norm, const Tensor& centre_norm, const Tensor& threshold,
                       const Tensor& distance) {
  const BadgeStepArguments call =
      check_badge_step(pool, u, offset, gradient, g, squared_norm, centre_norm, threshold, distance);
  const int64_t n_rows = call.n_rows, n_classes = call.n_classes;

  Tensor index = torch::stable::new_empty(u, {}, ScalarType::Long);
  const Tensor dense_pool = with_contiguous_rows(pool);
  const Tensor dense_u = torch::stable::contiguous(u);
  const Tensor dense_g = torch::stable::contiguous(g);
  dispatch_floating(call.dtype, kOp, [&](auto compute) {
    using scalar_t = typename decltype(compute)::type;
    dispatch_storage(pool.scalar_type(), kOp, [&](auto storage) {
      using storage_t = typename decltype(storage)::type;
      Pass<scalar_t, Bits<storage_t>> pass{};
      pass.pool = rows_of<storage_t>(dense_pool);
      pass.u = {dense_u.const_data_ptr<scalar_t>(), *offset.const_data_ptr<scalar_t>()};
      pass.gradient = gradient.const_data_ptr<scalar_t>();
      pass.row_stride = gradient.stride(0);
      pass.class_stride = gradient.stride(1);
      pass.n_classes = n_classes;
      pass.g = dense_g.const_data_ptr<scalar_t>();
      pass.squared_norm = squared_norm.const_data_ptr<scalar_t>();
      pass.norm_stride = squared_norm.stride(0);
      pass.centre_norm = *centre_norm.const_data_ptr<scalar_t>();
      pass.distance = distance.mutable_data_ptr<scalar_t>();
      pass.distance_stride = distance.stride(0);
      const double drawn = double(*threshold.const_data_ptr<scalar_t>());
      *index.mutable_data_ptr<int64_t>() = badge_step_impl(pass, n_rows, drawn);
    });
  });
  return index;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(lapal_ext, CPU, m) {
  m.impl("badge_step_", TORCH_BOX(&badge_step__cpu));
}
