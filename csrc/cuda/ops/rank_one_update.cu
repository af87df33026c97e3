#include <tuple>

#include "cuda/ops/rank_one_update.cuh"
#include "cuda/shared/launch.cuh"
#include "torch/arguments/rank_one_update.h"

namespace {

using namespace lapal_ext;
using torch::stable::Tensor;

constexpr int64_t kTileUpdateRows = 4 * kUpdateWarps;  // several per warp, so that computing v again costs little

// One block per posterior. Returns false if the matrix does not fit into shared memory.
template <class T>
bool downdate_small(const Launch& launch, const Downdates<T>& all) {
  const int64_t shared_bytes = (all.size * all.size + all.size) * int64_t(sizeof(T));
  const int64_t scratch_bytes = kUpdateWarps * int64_t(sizeof(double));
  if (shared_bytes + scratch_bytes > launch.max_shared_bytes()) {
    return false;
  }
  launch.allow_shared_bytes(downdate_small_kernel<T>, shared_bytes);
  LAPAL_LAUNCH(downdate_small_kernel<T>, launch.grid(all.n_matrices), kUpdateBlock, size_t(shared_bytes),
               launch.stream(), all);
  LAPAL_CHECK_LAUNCH();
  return true;
}

template <class T>
void downdate_large(const Launch& launch, const Downdates<T>& all) {
  const int64_t area = all.size * all.size;
  // Half of the cache: the second kernel writes as much as the first one reads.
  const int64_t at_a_time = std::max<int64_t>(1, launch.cache_bytes() / 2 / (area * int64_t(sizeof(T))));
  for (int64_t m = 0; m < all.n_matrices; m += at_a_time) {
    Downdates<T> part = all;
    part.covariance += m * area;
    part.features += m * all.size;
    part.curvature += m;
    part.result += m * area;
    part.direction += m * all.size;
    part.n_matrices = std::min(at_a_time, all.n_matrices - m);
    const int64_t n_rows = part.n_matrices * all.size;
    const int64_t n_tiles = part.n_matrices * ((all.size + kTileUpdateRows - 1) / kTileUpdateRows);
    LAPAL_LAUNCH(direction_kernel<T>, launch.grid((n_rows + kUpdateWarps - 1) / kUpdateWarps), kUpdateBlock, 0,
                 launch.stream(), part);
    LAPAL_CHECK_LAUNCH();
    LAPAL_LAUNCH(downdate_kernel<T>, launch.grid(n_tiles), kUpdateBlock, 0, launch.stream(), part, kTileUpdateRows);
    LAPAL_CHECK_LAUNCH();
  }
}

std::tuple<Tensor, Tensor> rank_one_update_cuda(const Tensor& covariance, const Tensor& features,
                                                const Tensor& curvature) {
  const RankOneUpdateArguments call = check_rank_one_update(covariance, features, curvature);
  const int64_t n_matrices = call.n_matrices, size = call.n_features;

  const Launch launch(covariance);
  Tensor result = torch::stable::new_empty(covariance, {n_matrices, size, size});
  Tensor direction = torch::stable::new_empty(covariance, {n_matrices, size});
  if (n_matrices == 0 || size == 0) {
    return {result, direction};
  }
  const Tensor dense_covariance = torch::stable::contiguous(covariance);
  const Tensor dense_features = torch::stable::contiguous(features);
  const Tensor dense_curvature = torch::stable::contiguous(curvature);
  dispatch_floating(call.dtype, kOp, [&](auto tag) {
    using scalar_t = typename decltype(tag)::type;
    const Downdates<scalar_t> all = {dense_covariance.const_data_ptr<scalar_t>(),
                                     dense_features.const_data_ptr<scalar_t>(),
                                     dense_curvature.const_data_ptr<scalar_t>(),
                                     n_matrices,
                                     size,
                                     result.mutable_data_ptr<scalar_t>(),
                                     direction.mutable_data_ptr<scalar_t>()};
    if (!downdate_small(launch, all)) {
      downdate_large(launch, all);
    }
  });
  return {result, direction};
}

}  // namespace

LAPAL_CUDA_IMPL(m) {
  m.impl("rank_one_update", TORCH_BOX(&rank_one_update_cuda));
}
