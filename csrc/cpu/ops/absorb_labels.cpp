// A batch of labels absorbed into a mean and a covariance.
//
//   W' = W + H^T X Sigma;  Sigma' = Sigma - U^T diag(beta) U,  T U = X Sigma.
//
// H, T, beta and the weights s' come from the recursion of update_coefficients, with the gram matrix X Sigma X^T and
// the logits X W^T.
//
// Shapes: mean W [C, D], covariance Sigma [D, D], features X [b, D], targets [b] -> W' [C, D], Sigma' [D, D], s' [b],
// well_conditioned []. The last one is true if all results, the gram matrix, the logits, beta and s' |x|^2 are finite,
// s' <= limit beta for each row, and |x|^2 max_i Sigma_ii <= limit = 2^-7 / eps.
//
// The kernels of inner_products, update_coefficients and rank_n_update (rank_one_update for one label) run one after
// the other, and each is parallel in its own way. One op for all of them saves time: for ten labels at D = 384, the
// calls through Python and the dispatcher would take longer than the arithmetic.
//
// Limit: b D (D + b + 2 C) + b D^2 / 2 multiply-adds. For few labels it is memory: two reads of Sigma and one write.
#include "torch/arguments/absorb_labels.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <atomic>
#include <limits>
#include <string>
#include <tuple>

#include "cpu/gemm/dots.h"
#include "cpu/ops/inner_products.h"
#include "cpu/ops/rank_n_update.h"
#include "cpu/ops/rank_one_update.h"
#include "cpu/ops/update_coefficients.h"
#include "cpu/simd/lanes.h"
#include "cpu/simd/scratch.h"
#include "shared/likelihood.h"
#include "torch/dispatch.h"
#include "torch/recycled_memory.h"

namespace {

using namespace lapal_ext;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr int64_t kGrain = 1 << 17;  // numbers per worker; with fewer, starting the worker costs more

// The inputs and results of a call, all contiguous.
template <class T>
struct Batch {
  int64_t n_rows, n_classes, n_features;
  const T* mean;
  const T* covariance;
  const T* features;
  const int64_t* targets;
  T* new_mean;
  T* new_covariance;
  T* weights;
};

// Whether no value is NaN or infinite: x - x is zero for every other number.
template <class T>
LAPAL_HD bool all_finite(const T* values, int64_t size) {
  LaneIndex<T> bad = 0;
#pragma omp simd reduction(| : bad)
  for (int64_t i = 0; i < size; ++i) {
    bad |= values[i] - values[i] == T(0) ? LaneIndex<T>(0) : LaneIndex<T>(1);
  }
  return bad == 0;
}

// Whether each row adds something finite to the precision, and whether it changes the covariance by more than rounding.
template <class T>
LAPAL_HD bool well_conditioned_observations(const Batch<T>& batch, const T* beta) {
  const T limit = T(kResolution) / std::numeric_limits<T>::epsilon();
  T largest = 0;
  for (int64_t i = 0; i < batch.n_features; ++i) {
    largest = std::max(largest, batch.covariance[i * (batch.n_features + 1)]);
  }
  bool well_conditioned = true;
  for (int64_t t = 0; t < batch.n_rows; ++t) {
    const T* row = batch.features + t * batch.n_features;
    const T square = dot(row, row, batch.n_features);
    const T gained = batch.weights[t] * square;
    // Each comparison is false for a NaN.
    well_conditioned &= all_finite(&gained, 1) && batch.weights[t] <= limit * beta[t] && square * largest <= limit;
  }
  return well_conditioned;
}

#define LAPAL_FINITE_KERNELS(T)                                                 \
  LAPAL_CLONES bool finite_kernel(const T* values, int64_t size) {              \
    return all_finite(values, size);                                            \
  }                                                                             \
  LAPAL_CLONES bool observations_kernel(const Batch<T>& batch, const T* beta) { \
    return well_conditioned_observations(batch, beta);                          \
  }                                                                             \
  LAPAL_CLONES void add_kernel(const T* values, int64_t size, T* out) {         \
    _Pragma("omp simd") for (int64_t i = 0; i < size; ++i) {                    \
      out[i] += values[i];                                                      \
    }                                                                           \
  }
LAPAL_FINITE_KERNELS(float)
LAPAL_FINITE_KERNELS(double)
#undef LAPAL_FINITE_KERNELS

// Whether a symmetric matrix is finite. Each row is read up to the diagonal.
template <class T>
bool finite_triangle(const T* matrix, int64_t size) {
  std::atomic<bool> finite{true};
  torch::stable::parallel_for(0, size, 1 + kGrain / (size + 1), [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      if (!finite_kernel(matrix + row * size, row + 1)) {
        finite = false;
      }
    }
  });
  return finite;
}

// Returns `well_conditioned`.
template <class T>
bool absorb_labels_impl(const Batch<T>& batch, const UpdateRule& rule) {
  const int64_t b = batch.n_rows, n_classes = batch.n_classes, size = batch.n_features;
  const Scratch<T> columns(b * size), gram(b * b), logits(b * n_classes), coefficients(b * n_classes), triangle(b * b),
      beta(b);
  STD_TORCH_CHECK(columns && gram && logits && coefficients && triangle && beta, kOp, ": out of memory");
  const Matrix<T> rows{batch.features, b, size, 1};
  // Sigma is passed as its transpose: its rows then have the layout of the panels of the product.
  multiply(rows, Matrix<T>{batch.covariance, size, 1, size}, size, columns.data());
  multiply(Matrix<T>{columns.data(), b, size, 1}, rows, size, gram.data(), Part::lower);
  multiply(rows, Matrix<T>{batch.mean, n_classes, size, 1}, size, logits.data());
  find_coefficients(Hypotheses<T>{1, b, n_classes, gram.data(), logits.data(), batch.targets, coefficients.data(),
                                  triangle.data(), beta.data(), batch.weights},
                    rule);
  multiply(Matrix<T>{coefficients.data(), n_classes, 1, n_classes}, Matrix<T>{columns.data(), size, 1, size}, b,
           batch.new_mean);
  add_kernel(batch.mean, n_classes * size, batch.new_mean);
  const bool well_conditioned = observations_kernel(batch, beta.data()) && finite_kernel(beta.data(), b);
  if (b == 1) {
    update_matrices(batch.covariance, batch.features, batch.weights, 1, size, batch.new_covariance, columns.data());
  } else {
    std::transform(beta.data(), beta.data() + b, beta.data(), [](T value) { return -value; });
    update_matrix(
        RankNUpdate<T>{batch.covariance, columns.data(), beta.data(), triangle.data(), size, b, batch.new_covariance});
  }
  // The coefficients need no check: one that is not finite makes a row of the mean NaN.
  return well_conditioned && finite_triangle(gram.data(), b) && finite_kernel(logits.data(), b * n_classes) &&
         finite_kernel(batch.new_mean, n_classes * size) && finite_triangle(batch.new_covariance, size);
}

std::tuple<Tensor, Tensor, Tensor, Tensor> absorb_labels_cpu(const Tensor& mean, const Tensor& covariance,
                                                             const Tensor& features, const Tensor& targets,
                                                             double gamma, const std::string& step,
                                                             const std::string& curvature) {
  const AbsorbLabelsArguments call = check_absorb_labels(mean, covariance, features, targets, gamma, step, curvature);
  const int64_t n_classes = call.n_classes, size = call.n_features, n_rows = call.n_rows;
  const Tensor dense_targets = torch::stable::contiguous(targets);
  check_index_range(dense_targets, n_classes, kOp, "targets");

  Tensor new_mean = recycled_empty(mean, {n_classes, size});
  Tensor new_covariance = recycled_empty(mean, {size, size});
  Tensor weights = torch::stable::new_empty(mean, {n_rows});
  Tensor well_conditioned = torch::stable::new_empty(mean, {}, ScalarType::Bool);
  const Tensor dense_mean = torch::stable::contiguous(mean);
  const Tensor dense_covariance = torch::stable::contiguous(covariance);
  const Tensor dense_features = torch::stable::contiguous(features);
  dispatch_floating(call.dtype, kOp, [&](auto tag) {
    using scalar_t = typename decltype(tag)::type;
    const Batch<scalar_t> batch{n_rows,
                                n_classes,
                                size,
                                dense_mean.const_data_ptr<scalar_t>(),
                                dense_covariance.const_data_ptr<scalar_t>(),
                                dense_features.const_data_ptr<scalar_t>(),
                                dense_targets.const_data_ptr<int64_t>(),
                                new_mean.mutable_data_ptr<scalar_t>(),
                                new_covariance.mutable_data_ptr<scalar_t>(),
                                weights.mutable_data_ptr<scalar_t>()};
    *well_conditioned.mutable_data_ptr<bool>() = absorb_labels_impl(batch, call.rule);
  });
  return {new_mean, new_covariance, weights, well_conditioned};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(lapal_ext, CPU, m) {
  m.impl("absorb_labels", TORCH_BOX(&absorb_labels_cpu));
}
