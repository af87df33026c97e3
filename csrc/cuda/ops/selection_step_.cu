#include <optional>
#include <string>
#include <tuple>

#include "cuda/ops/selection_step_.cuh"
#include "cuda/shared/pool_launch.cuh"
#include "cuda/shared/row_launch.cuh"
#include "torch/arguments/selection_step_.h"

namespace {

using namespace lapal_ext;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Returns the number of blocks, each of which has stored a candidate.
template <Utility kind, class T>
unsigned selection_of_kind(const Launch& launch, const SelectionRows<T>& rows) {
  unsigned n_blocks = 0;
  launch_rows<T>(
      launch, rows.logits.n_rows, rows.logits.n_classes,
      [&](unsigned grid, unsigned block, size_t shared_bytes) {
        LAPAL_LAUNCH((selection_tile_kernel<kind, T>), grid, block, shared_bytes, launch.stream(), rows);
        n_blocks = grid;
      },
      [&](unsigned grid, unsigned block, auto per_lane) {
        [[maybe_unused]] constexpr int kPerLane = decltype(per_lane)::value;
        // A utility that needs no logits does not keep them in registers.
        if constexpr (!needs_of(kind).logits) {
          LAPAL_LAUNCH((selection_long_kernel<kind, T>), grid, block, 0, launch.stream(), rows);
        } else {
          LAPAL_LAUNCH((selection_warp_kernel<kind, kPerLane, T>), grid, block, 0, launch.stream(), rows);
        }
        n_blocks = grid;
      },
      [&](unsigned grid, unsigned block) {
        LAPAL_LAUNCH((selection_long_kernel<kind, T>), grid, block, 0, launch.stream(), rows);
        n_blocks = grid;
      });
  LAPAL_CHECK_LAUNCH();
  return n_blocks;
}

template <class T>
unsigned selection_impl(const Launch& launch, Utility kind, const SelectionRows<T>& rows) {
  switch (kind) {
    case Utility::margin:
      return selection_of_kind<Utility::margin>(launch, rows);
    case Utility::entropy:
      return selection_of_kind<Utility::entropy>(launch, rows);
    case Utility::least_confident:
      return selection_of_kind<Utility::least_confident>(launch, rows);
    case Utility::gradient_norm:
      return selection_of_kind<Utility::gradient_norm>(launch, rows);
    case Utility::variance:
      return selection_of_kind<Utility::variance>(launch, rows);
  }
  return 0;
}

std::tuple<Tensor, Tensor> selection_step__cuda(const Tensor& pool, const Tensor& u, const Tensor& offset,
                                                const Tensor& g, const Tensor& beta, const Tensor& logits,
                                                const std::optional<Tensor>& variance, const Tensor& taken,
                                                const std::optional<Tensor>& scale, const std::string& kind_name,
                                                double kappa) {
  const SelectionStepArguments call =
      check_selection_step(pool, u, offset, g, beta, logits, variance, taken, scale, kind_name);
  const int64_t n_rows = call.n_rows;

  const Launch launch(pool);
  Tensor index = torch::stable::new_empty(logits, {}, ScalarType::Long);
  Tensor utility = torch::stable::new_empty(logits, {});
  const Tensor dense_pool = with_contiguous_rows(pool);
  const Tensor dense_u = torch::stable::contiguous(u);
  const Tensor dense_g = torch::stable::contiguous(g);
  const Tensor columns = torch::stable::new_empty(logits, {n_rows});
  dispatch_floating(call.dtype, kOp, [&](auto tag) {
    using scalar_t = typename decltype(tag)::type;
    const Tensor candidates = new_candidates<scalar_t>(logits, launch.grid(n_rows));
    SelectionRows<scalar_t> rows{};
    rows.logits = rows_of_logits<scalar_t>(logits);
    rows.moved = logits.mutable_data_ptr<scalar_t>();
    rows.columns = columns.const_data_ptr<scalar_t>();
    rows.effect = {dense_u.const_data_ptr<scalar_t>(),
                   call.n_features,
                   offset.const_data_ptr<scalar_t>(),
                   dense_g.const_data_ptr<scalar_t>(),
                   call.n_classes,
                   variance.has_value() ? beta.const_data_ptr<scalar_t>() : nullptr};
    if (variance.has_value()) {
      rows.variance = variance->mutable_data_ptr<scalar_t>();
      rows.variance_stride = variance->stride(0);
    }
    if (needs_of(call.kind).scale) {
      rows.scale = scale->const_data_ptr<scalar_t>();
      rows.scale_stride = scale->stride(0);
    }
    rows.kappa = scalar_t(kappa);
    rows.taken = taken_rows(taken);
    rows.candidates = candidates_of<scalar_t>(candidates);
    unsigned n_blocks = 0;
    if (n_rows > 0) {
      multiply_pool<1, scalar_t>(launch, dense_pool, {rows.effect.u}, {rows.effect.offset}, rows.effect,
                                 columns.mutable_data_ptr<scalar_t>(), kOp);
      n_blocks = selection_impl(launch, call.kind, rows);
    }
    take_best(launch, rows.candidates, n_blocks, rows.taken, index.mutable_data_ptr<int64_t>(),
              utility.mutable_data_ptr<scalar_t>());
  });
  return {index, utility};
}

}  // namespace

LAPAL_CUDA_IMPL(m) {
  m.impl("selection_step_", TORCH_BOX(&selection_step__cuda));
}
