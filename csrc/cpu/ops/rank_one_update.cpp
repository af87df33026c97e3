// Sherman-Morrison downdate of B covariances.
//
//   u = Sigma phi;  Sigma' = Sigma - s / (1 + s phi.u) u u^T, NaN where 1 + s phi.u <= 0.
//
// Shapes: covariance [B, D, D], features [B, D], curvature [B] -> Sigma' [B, D, D], u [B, D]; contiguous.
//
// Two passes over rows: u_i = Sigma_i . phi, each sum in one fixed order; then row i of Sigma'. The product u_i u_j is
// rounded before it is multiplied by the shrinkage, so Sigma' is symmetric to the bit where Sigma is.
//
// Parallel over matrices, or over the rows of each matrix if there are fewer matrices than threads. Rows are
// independent, so both give the same bits.
//
// Limit: memory, one read of Sigma (a second from cache while a matrix fits) and one write of Sigma'.
#include "cpu/ops/rank_one_update.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <tuple>

#include "cpu/gemm/dots.h"
#include "cpu/simd/lanes.h"
#include "torch/arguments/rank_one_update.h"
#include "torch/dispatch.h"
#include "torch/recycled_memory.h"

namespace {

using namespace lapal_ext;
using torch::stable::Tensor;

constexpr int64_t kGrain = 1 << 15;  // elements of Sigma per worker; with fewer, starting the worker costs more

// u_i for rows [begin, end) of one matrix.
template <class T>
LAPAL_HD void direction_rows(const T* covariance, const T* features, int64_t size, int64_t begin, int64_t end,
                             T* direction) {
  for (int64_t i = begin; i < end; ++i) {
    direction[i] = dot(covariance + i * size, features, size);
  }
}

// Rows [begin, end) of Sigma'.
template <class T>
LAPAL_HD void downdate_rows(const T* covariance, const T* direction, T shrinkage, int64_t size, int64_t begin,
                            int64_t end, T* result) {
  for (int64_t i = begin; i < end; ++i) {
    const T* row = covariance + i * size;
    T* out = result + i * size;
    const T factor = direction[i];
#pragma omp simd
    for (int64_t j = 0; j < size; ++j) {
      const T product = factor * direction[j];
      out[j] = row[j] - shrinkage * product;
    }
  }
}

LAPAL_CLONES void direction_kernel(const float* covariance, const float* features, int64_t size, int64_t begin,
                                   int64_t end, float* direction) {
  direction_rows(covariance, features, size, begin, end, direction);
}

LAPAL_CLONES void direction_kernel(const double* covariance, const double* features, int64_t size, int64_t begin,
                                   int64_t end, double* direction) {
  direction_rows(covariance, features, size, begin, end, direction);
}

LAPAL_CLONES void downdate_kernel(const float* covariance, const float* direction, float shrinkage, int64_t size,
                                  int64_t begin, int64_t end, float* result) {
  downdate_rows(covariance, direction, shrinkage, size, begin, end, result);
}

LAPAL_CLONES void downdate_kernel(const double* covariance, const double* direction, double shrinkage, int64_t size,
                                  int64_t begin, int64_t end, double* result) {
  downdate_rows(covariance, direction, shrinkage, size, begin, end, result);
}

// s / (1 + s v), with v = phi.u summed in float64.
template <class T>
T shrinkage_of(const T* features, const T* direction, int64_t size, T curvature) {
  double variance = 0.0;
  for (int64_t i = 0; i < size; ++i) {
    variance += double(features[i]) * double(direction[i]);
  }
  const double scale = 1.0 + double(curvature) * variance;
  return scale > 0.0 ? T(double(curvature) / scale) : T(__builtin_nan(""));
}

}  // namespace

namespace lapal_ext {

template <class T>
void update_matrices(const T* covariance, const T* features, const T* curvature, int64_t n_matrices, int64_t size,
                     T* result, T* direction) {
  if (n_matrices == 0 || size == 0) {
    return;
  }
  const int64_t area = size * size;
  const auto grain_of = [](int64_t work) { return 1 + kGrain / work; };
  if (n_matrices >= int64_t(torch::stable::get_num_threads())) {
    torch::stable::parallel_for(0, n_matrices, grain_of(area), [&](int64_t begin, int64_t end) {
      for (int64_t m = begin; m < end; ++m) {
        direction_kernel(covariance + m * area, features + m * size, size, 0, size, direction + m * size);
        const T shrinkage = shrinkage_of(features + m * size, direction + m * size, size, curvature[m]);
        downdate_kernel(covariance + m * area, direction + m * size, shrinkage, size, 0, size, result + m * area);
      }
    });
    return;
  }
  for (int64_t m = 0; m < n_matrices; ++m) {
    const T* from = covariance + m * area;
    T* u = direction + m * size;
    torch::stable::parallel_for(0, size, grain_of(size), [&](int64_t begin, int64_t end) {
      direction_kernel(from, features + m * size, size, begin, end, u);
    });
    const T shrinkage = shrinkage_of(features + m * size, u, size, curvature[m]);
    torch::stable::parallel_for(0, size, grain_of(size), [&](int64_t begin, int64_t end) {
      downdate_kernel(from, u, shrinkage, size, begin, end, result + m * area);
    });
  }
}

template void update_matrices(const float*, const float*, const float*, int64_t, int64_t, float*, float*);
template void update_matrices(const double*, const double*, const double*, int64_t, int64_t, double*, double*);

}  // namespace lapal_ext

namespace {

std::tuple<Tensor, Tensor> rank_one_update_cpu(const Tensor& covariance, const Tensor& features,
                                               const Tensor& curvature) {
  const RankOneUpdateArguments call = check_rank_one_update(covariance, features, curvature);
  const int64_t n_matrices = call.n_matrices, size = call.n_features;

  Tensor result = recycled_empty(covariance, {n_matrices, size, size});
  Tensor direction = torch::stable::new_empty(covariance, {n_matrices, size});
  const Tensor dense_covariance = torch::stable::contiguous(covariance);
  const Tensor dense_features = torch::stable::contiguous(features);
  const Tensor dense_curvature = torch::stable::contiguous(curvature);
  dispatch_floating(call.dtype, kOp, [&](auto tag) {
    using scalar_t = typename decltype(tag)::type;
    update_matrices(dense_covariance.const_data_ptr<scalar_t>(), dense_features.const_data_ptr<scalar_t>(),
                    dense_curvature.const_data_ptr<scalar_t>(), n_matrices, size, result.mutable_data_ptr<scalar_t>(),
                    direction.mutable_data_ptr<scalar_t>());
  });
  return {result, direction};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(lapal_ext, CPU, m) {
  m.impl("rank_one_update", TORCH_BOX(&rank_one_update_cpu));
}
