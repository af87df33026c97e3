#include "cuda/ops/badge_step_.cuh"
#include "cuda/shared/pool_launch.cuh"
#include "cuda/shared/row_launch.cuh"
#include "torch/arguments/badge_step_.h"

namespace {

using namespace lapal_ext;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

Tensor badge_step__cuda(const Tensor& pool, const Tensor& u, const Tensor& offset, const Tensor& gradient,
                        const Tensor& g, const Tensor& squared_norm, const Tensor& centre_norm, const Tensor& threshold,
                        const Tensor& distance) {
  const BadgeStepArguments call =
      check_badge_step(pool, u, offset, gradient, g, squared_norm, centre_norm, threshold, distance);
  const int64_t n_rows = call.n_rows, n_classes = call.n_classes;

  const Launch launch(pool);
  Tensor index = torch::stable::new_empty(u, {}, ScalarType::Long);
  const bool many_classes = n_classes > kFewClasses || n_classes == 0;
  const Tensor dense_pool = with_contiguous_rows(pool);
  const Tensor dense_gradient = many_classes ? with_contiguous_rows(gradient) : gradient;
  const Tensor dense_u = torch::stable::contiguous(u);
  const Tensor dense_g = torch::stable::contiguous(g);
  const int64_t n_tiles = (n_rows + kTileRows - 1) / kTileRows;
  const Tensor products = torch::stable::new_empty(u, {many_classes ? 2 : 1, n_rows});
  const Tensor sums = torch::stable::new_empty(u, {n_tiles}, ScalarType::Double);
  dispatch_floating(call.dtype, kOp, [&](auto tag) {
    using scalar_t = typename decltype(tag)::type;
    scalar_t* along_u = products.mutable_data_ptr<scalar_t>();
    BadgeRows<scalar_t> rows{};
    rows.gradient = rows_of_logits<scalar_t>(gradient);
    rows.g = dense_g.const_data_ptr<scalar_t>();
    rows.along_u = along_u;
    rows.along_g = many_classes ? along_u + n_rows : nullptr;
    rows.squared_norm = squared_norm.const_data_ptr<scalar_t>();
    rows.norm_stride = squared_norm.stride(0);
    rows.centre_norm = centre_norm.const_data_ptr<scalar_t>();
    rows.distance = distance.mutable_data_ptr<scalar_t>();
    rows.distance_stride = distance.stride(0);
    rows.sums = sums.mutable_data_ptr<double>();
    if (n_rows > 0) {
      multiply_pool<1, scalar_t>(launch, dense_pool, {dense_u.const_data_ptr<scalar_t>()},
                                 {offset.const_data_ptr<scalar_t>()}, {}, along_u, kOp);
      if (many_classes) {
        multiply_pool<1, scalar_t>(launch, dense_gradient, {rows.g}, {nullptr}, {}, along_u + n_rows, kOp);
      }
      const int64_t tile_numbers = many_classes ? 0 : kTileRows * tile_row_length(int(n_classes));
      LAPAL_LAUNCH(badge_kernel<scalar_t>, launch.grid(n_tiles), kTileRows, size_t(tile_numbers) * sizeof(scalar_t),
                   launch.stream(), rows);
      LAPAL_CHECK_LAUNCH();
    }
    LAPAL_LAUNCH(badge_draw_kernel<scalar_t>, 1, kDrawBlock, 0, launch.stream(), rows, n_tiles,
                 threshold.const_data_ptr<scalar_t>(), index.mutable_data_ptr<int64_t>());
    LAPAL_CHECK_LAUNCH();
  });
  return index;
}

}  // namespace

LAPAL_CUDA_IMPL(m) {
  m.impl("badge_step_", TORCH_BOX(&badge_step__cuda));
}
