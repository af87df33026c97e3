#include <optional>

#include "cuda/ops/predictive.cuh"
#include "cuda/shared/row_launch.cuh"
#include "torch/arguments/predictive.h"

namespace {

using namespace lapal_ext;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

template <class T>
void predictive_impl(const Launch& launch, const PredictiveRows<T>& rows) {
  launch_rows<T>(
      launch, rows.logits.n_rows, rows.logits.n_classes,
      [&](unsigned grid, unsigned block, size_t shared_bytes) {
        LAPAL_LAUNCH(predictive_tile_kernel<T>, grid, block, shared_bytes, launch.stream(), rows);
      },
      [&](unsigned grid, unsigned block, auto per_lane) {
        constexpr int kPerLane = decltype(per_lane)::value;
        LAPAL_LAUNCH((predictive_warp_kernel<kPerLane, T>), grid, block, 0, launch.stream(), rows);
      },
      [&](unsigned grid, unsigned block) {
        LAPAL_LAUNCH(predictive_long_kernel<T>, grid, block, 0, launch.stream(), rows);
      });
  LAPAL_CHECK_LAUNCH();
}

Tensor predictive_cuda(const Tensor& logits, const std::optional<Tensor>& variance, double kappa) {
  const PredictiveArguments call = check_predictive(logits, variance);
  const int64_t n_rows = call.n_rows, n_classes = call.n_classes;
  const Launch launch(logits);
  Tensor probabilities = torch::stable::new_empty(logits, {n_rows, n_classes});
  if (n_rows == 0 || n_classes == 0) {
    return probabilities;
  }
  dispatch_floating(call.dtype, kOp, [&](auto tag) {
    using scalar_t = typename decltype(tag)::type;
    PredictiveRows<scalar_t> rows{};
    rows.logits = rows_of_logits<scalar_t>(logits);
    if (variance.has_value()) {
      rows.variance = variance->const_data_ptr<scalar_t>();
      rows.variance_stride = variance->stride(0);
    }
    rows.kappa = scalar_t(kappa);
    rows.probabilities = probabilities.mutable_data_ptr<scalar_t>();
    predictive_impl(launch, rows);
  });
  return probabilities;
}

}  // namespace

LAPAL_CUDA_IMPL(m) {
  m.impl("predictive", TORCH_BOX(&predictive_cuda));
}
