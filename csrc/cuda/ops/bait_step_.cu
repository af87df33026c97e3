#include <tuple>

#include "cuda/ops/bait_step_.cuh"
#include "cuda/shared/pool_launch.cuh"
#include "torch/arguments/bait_step_.h"

namespace {

using namespace lapal_ext;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

std::tuple<Tensor, Tensor> bait_step__cuda(const Tensor& pool, const Tensor& u, const Tensor& u_offset, const Tensor& w,
                                           const Tensor& w_offset, const Tensor& fisher_norm, const Tensor& beta,
                                           const Tensor& curvature, const Tensor& h, const Tensor& q,
                                           const Tensor& taken) {
  const BaitStepArguments call =
      check_bait_step(pool, u, u_offset, w, w_offset, fisher_norm, beta, curvature, h, q, taken);
  const int64_t n_rows = call.n_rows;

  const Launch launch(pool);
  Tensor index = torch::stable::new_empty(u, {}, ScalarType::Long);
  Tensor gain = torch::stable::new_empty(u, {});
  const Tensor dense_pool = with_contiguous_rows(pool);
  const Tensor dense_u = torch::stable::contiguous(u);
  const Tensor dense_w = torch::stable::contiguous(w);
  const Tensor products = torch::stable::new_empty(u, {2, n_rows});
  const unsigned n_blocks = launch.grid((n_rows + kBaitBlock - 1) / kBaitBlock);
  dispatch_floating(call.dtype, kOp, [&](auto tag) {
    using scalar_t = typename decltype(tag)::type;
    const Tensor candidates = new_candidates<scalar_t>(u, n_blocks);
    BaitRows<scalar_t> rows{};
    rows.n_rows = n_rows;
    rows.along_u = products.const_data_ptr<scalar_t>();
    rows.along_w = rows.along_u + n_rows;
    rows.effect.u = dense_u.const_data_ptr<scalar_t>();
    rows.effect.n_features = call.n_features;
    rows.effect.offset = u_offset.const_data_ptr<scalar_t>();
    rows.effect.beta = beta.const_data_ptr<scalar_t>();
    rows.fisher_norm = fisher_norm.const_data_ptr<scalar_t>();
    rows.curvature = curvature.const_data_ptr<scalar_t>();
    rows.curvature_stride = curvature.stride(0);
    rows.h = h.mutable_data_ptr<scalar_t>();
    rows.h_stride = h.stride(0);
    rows.q = q.mutable_data_ptr<scalar_t>();
    rows.q_stride = q.stride(0);
    rows.taken = taken_rows(taken);
    rows.candidates = candidates_of<scalar_t>(candidates);
    if (n_rows > 0) {
      multiply_pool<2, scalar_t>(launch, dense_pool, {rows.effect.u, dense_w.const_data_ptr<scalar_t>()},
                                 {rows.effect.offset, w_offset.const_data_ptr<scalar_t>()}, rows.effect,
                                 products.mutable_data_ptr<scalar_t>(), kOp);
      LAPAL_LAUNCH(bait_kernel<scalar_t>, n_blocks, kBaitBlock, 0, launch.stream(), rows);
      LAPAL_CHECK_LAUNCH();
    }
    take_best(launch, rows.candidates, n_blocks, rows.taken, index.mutable_data_ptr<int64_t>(),
              gain.mutable_data_ptr<scalar_t>());
  });
  return {index, gain};
}

}  // namespace

LAPAL_CUDA_IMPL(m) {
  m.impl("bait_step_", TORCH_BOX(&bait_step__cuda));
}
