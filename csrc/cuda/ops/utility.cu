#include <optional>
#include <string>

#include "cuda/ops/utility.cuh"
#include "cuda/shared/row_launch.cuh"
#include "torch/arguments/utility.h"

namespace {

using namespace lapal_ext;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

template <Utility kind, class T>
void utility_of_kind(const Launch& launch, const UtilityRows<T>& rows) {
  launch_rows<T>(
      launch, rows.logits.n_rows, rows.logits.n_classes,
      [&](unsigned grid, unsigned block, size_t shared_bytes) {
        LAPAL_LAUNCH((utility_tile_kernel<kind, T>), grid, block, shared_bytes, launch.stream(), rows);
      },
      [&](unsigned grid, unsigned block, auto per_lane) {
        constexpr int kPerLane = decltype(per_lane)::value;
        LAPAL_LAUNCH((utility_warp_kernel<kind, kPerLane, T>), grid, block, 0, launch.stream(), rows);
      },
      [&](unsigned grid, unsigned block) {
        LAPAL_LAUNCH((utility_long_kernel<kind, T>), grid, block, 0, launch.stream(), rows);
      });
}

template <class T>
void utility_impl(const Launch& launch, Utility kind, const UtilityRows<T>& rows) {
  switch (kind) {
    case Utility::margin:
      utility_of_kind<Utility::margin>(launch, rows);
      break;
    case Utility::entropy:
      utility_of_kind<Utility::entropy>(launch, rows);
      break;
    case Utility::least_confident:
      utility_of_kind<Utility::least_confident>(launch, rows);
      break;
    case Utility::gradient_norm:
      utility_of_kind<Utility::gradient_norm>(launch, rows);
      break;
    case Utility::variance: {
      const unsigned grid = launch.grid((rows.logits.n_rows + kTileRows - 1) / kTileRows);
      LAPAL_LAUNCH(copy_variance_kernel<T>, grid, kTileRows, 0, launch.stream(), rows);
      break;
    }
  }
  LAPAL_CHECK_LAUNCH();
}

Tensor utility_cuda(const Tensor& logits, const std::optional<Tensor>& variance, const std::optional<Tensor>& scale,
                    const std::string& kind_name, double kappa) {
  const UtilityArguments call = check_utility(logits, variance, scale, kind_name);
  const Launch launch(logits);
  Tensor utilities = torch::stable::new_empty(logits, {call.n_rows});
  if (call.n_rows == 0) {
    return utilities;
  }
  dispatch_floating(call.dtype, kOp, [&](auto tag) {
    using scalar_t = typename decltype(tag)::type;
    UtilityRows<scalar_t> rows{};
    rows.logits = rows_of_logits<scalar_t>(logits);
    if (variance.has_value()) {
      rows.variance = variance->const_data_ptr<scalar_t>();
      rows.variance_stride = variance->stride(0);
    }
    if (needs_of(call.kind).scale) {
      rows.scale = scale->const_data_ptr<scalar_t>();
      rows.scale_stride = scale->stride(0);
    }
    rows.kappa = scalar_t(kappa);
    rows.utilities = utilities.mutable_data_ptr<scalar_t>();
    utility_impl(launch, call.kind, rows);
  });
  return utilities;
}

}  // namespace

LAPAL_CUDA_IMPL(m) {
  m.impl("utility", TORCH_BOX(&utility_cuda));
}
