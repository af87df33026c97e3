#include <tuple>

#include "cuda/ops/nearest_distance_.cuh"
#include "cuda/shared/pool_launch.cuh"
#include "torch/arguments/nearest_distance_.h"

namespace {

using namespace lapal_ext;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

template <class T, class S>
bool all_aligned(const NearestRows<T, S>& rows) {
  return ((reinterpret_cast<uintptr_t>(rows.pool) | uintptr_t(rows.row_stride) * sizeof(S) |
           reinterpret_cast<uintptr_t>(rows.centres) | uintptr_t(rows.n_features) * sizeof(T) |
           reinterpret_cast<uintptr_t>(rows.scale)) %
          16) == 0;
}

std::tuple<Tensor, Tensor> nearest_distance__cuda(const Tensor& pool, const Tensor& centres, const Tensor& scale,
                                                  const Tensor& nearest, const Tensor& taken) {
  const NearestDistanceArguments call = check_nearest_distance(pool, centres, scale, nearest, taken);
  const int64_t n_rows = call.n_rows;

  const Launch launch(pool);
  Tensor index = torch::stable::new_empty(centres, {}, ScalarType::Long);
  Tensor distance = torch::stable::new_empty(centres, {});
  const Tensor dense_pool = with_contiguous_rows(pool);
  const Tensor dense_centres = torch::stable::contiguous(centres);
  const Tensor dense_scale = torch::stable::contiguous(scale);
  constexpr int64_t kBlockRows = kPoolWarps * kRowsAtOnce;
  const unsigned n_blocks = launch.grid((n_rows + kBlockRows - 1) / kBlockRows);
  dispatch_floating(call.dtype, kOp, [&](auto compute) {
    using scalar_t = typename decltype(compute)::type;
    const Tensor candidates = new_candidates<scalar_t>(centres, n_blocks);
    dispatch_storage(pool.scalar_type(), kOp, [&](auto storage) {
      using storage_t = typename decltype(storage)::type;
      NearestRows<scalar_t, Bits<storage_t>> rows{};
      rows.pool = reinterpret_cast<const Bits<storage_t>*>(dense_pool.const_data_ptr<storage_t>());
      rows.row_stride = dense_pool.stride(0);
      rows.n_rows = n_rows;
      rows.n_features = call.n_features;
      rows.centres = dense_centres.const_data_ptr<scalar_t>();
      rows.n_centres = call.n_centres;
      rows.scale = dense_scale.const_data_ptr<scalar_t>();
      rows.nearest = nearest.mutable_data_ptr<scalar_t>();
      rows.nearest_stride = nearest.stride(0);
      rows.taken = taken_rows(taken);
      rows.candidates = candidates_of<scalar_t>(candidates);
      if (n_rows > 0) {
        if (all_aligned(rows)) {
          LAPAL_LAUNCH((nearest_kernel<true, scalar_t, Bits<storage_t>>), n_blocks, kPoolBlock, 0, launch.stream(),
                       rows);
        } else {
          LAPAL_LAUNCH((nearest_kernel<false, scalar_t, Bits<storage_t>>), n_blocks, kPoolBlock, 0, launch.stream(),
                       rows);
        }
        LAPAL_CHECK_LAUNCH();
      }
      take_best(launch, rows.candidates, n_blocks, rows.taken, index.mutable_data_ptr<int64_t>(),
                distance.mutable_data_ptr<scalar_t>());
    });
  });
  return {index, distance};
}

}  // namespace

LAPAL_CUDA_IMPL(m) {
  m.impl("nearest_distance_", TORCH_BOX(&nearest_distance__cuda));
}
