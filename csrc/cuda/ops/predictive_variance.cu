#include "cuda/ops/predictive_variance.cuh"
#include "cuda/shared/launch.cuh"
#include "torch/arguments/predictive_variance.h"

namespace {

using namespace lapal_ext;
using torch::stable::Tensor;

// `parts` has room for `at_a_time` rows.
template <class T>
void predictive_variance_impl(const Launch& launch, const Forms<T>& all, int64_t at_a_time) {
  const int64_t n_rows = all.features.n_rows;
  for (int64_t n = 0; n < n_rows; n += at_a_time) {
    Forms<T> some = all;
    some.features.data += n * all.features.row_stride;
    some.features.n_rows = std::min(at_a_time, n_rows - n);
    some.variance += n;
    const int64_t n_tiles = (some.features.n_rows + kProductRows - 1) / kProductRows;
    if (all.n_panels > 0) {
      LAPAL_LAUNCH(variance_kernel<T>, launch.grid(n_tiles * all.n_panels), kProductBlock, 0, launch.stream(), some);
      LAPAL_CHECK_LAUNCH();
    }
    LAPAL_LAUNCH(sum_panels_kernel<T>, launch.grid(n_tiles), kProductBlock, 0, launch.stream(), some);
    LAPAL_CHECK_LAUNCH();
  }
}

Tensor predictive_variance_cuda(const Tensor& features, const Tensor& covariance) {
  const PredictiveVarianceArguments call = check_predictive_variance(features, covariance);
  const int64_t n_rows = call.n_rows, n_features = call.n_features;

  const Launch launch(features);
  Tensor variance = torch::stable::new_empty(features, {n_rows});
  if (n_rows == 0) {
    return variance;
  }
  const int64_t at_a_time =
      std::min(n_rows, kProductRows * int64_t(launch.grid((n_rows + kProductRows - 1) / kProductRows)));
  dispatch_floating(call.dtype, kOp, [&](auto tag) {
    using scalar_t = typename decltype(tag)::type;
    constexpr int64_t kCols = ProductTile<scalar_t>::kCols;
    const int64_t n_panels = (n_features + kCols - 1) / kCols;
    const Tensor triangle = torch::stable::new_empty(features, {panel_offset<scalar_t>(n_panels)});
    const Tensor parts = torch::stable::new_empty(features, {n_panels, at_a_time});
    if (n_panels > 0) {
      LAPAL_LAUNCH(pack_triangle_kernel<scalar_t>, launch.grid(n_panels * n_panels), kProductBlock, 0, launch.stream(),
                   covariance.const_data_ptr<scalar_t>(), covariance.stride(0), covariance.stride(1), n_features,
                   n_panels, triangle.mutable_data_ptr<scalar_t>());
      LAPAL_CHECK_LAUNCH();
    }
    const PaddedRows<scalar_t> rows = {features.const_data_ptr<scalar_t>(), features.stride(0), features.stride(1),
                                       n_rows, n_panels * kCols - n_features};
    const Forms<scalar_t> all = {rows, n_panels, triangle.const_data_ptr<scalar_t>(),
                                 parts.mutable_data_ptr<scalar_t>(), variance.mutable_data_ptr<scalar_t>()};
    predictive_variance_impl(launch, all, at_a_time);
  });
  return variance;
}

}  // namespace

LAPAL_CUDA_IMPL(m) {
  m.impl("predictive_variance", TORCH_BOX(&predictive_variance_cuda));
}
