#include <optional>
#include <string>

#include "cuda/ops/lookahead_loss.cuh"
#include "cuda/shared/launch.cuh"
#include "torch/arguments/lookahead_loss.h"

namespace {

using namespace lapal_ext;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

template <Loss kind, int kGroup, class T>
void sum_staged(const Launch& launch, const Lookahead<T>& call, int64_t shared_bytes) {
  constexpr auto kKernel = lookahead_loss_kernel<kind, kGroup, true, T>;
  launch.allow_shared_bytes(kKernel, shared_bytes);
  LAPAL_LAUNCH(kKernel, launch.grid(call.parts.n_parts * call.n_hypotheses), kPointBlock, size_t(shared_bytes),
               launch.stream(), call);
}

// For H, T and z that are too large for shared memory.
template <Loss kind, class T>
void sum_in_place(const Launch& launch, Lookahead<T> call, const Tensor& logits) {
  unsigned grid = launch.grid(call.parts.n_parts * call.n_hypotheses);
  Tensor z;
  if (call.variance != nullptr) {
    const int64_t values = int64_t(call.batch_size) * kRoundPoints<T>;
    const int64_t most = std::max<int64_t>(1, kMaxLinkBytes / (values * int64_t(sizeof(T))));
    grid = unsigned(std::min<int64_t>(grid, most));
    z = torch::stable::new_empty(logits, {int64_t(grid) * values});
    call.z = z.mutable_data_ptr<T>();
  }
  LAPAL_LAUNCH((lookahead_loss_kernel<kind, 8, false, T>), grid, kPointBlock, 0, launch.stream(), call);
}

template <Loss kind, class T>
void sum_of_kind(const Launch& launch, const Lookahead<T>& call, const Tensor& logits) {
  // Groups of eight, unless they have more empty classes than groups of four.
  const int group = groups_of(call.n_classes, 4) % 2 == 0 || call.n_classes > 12 ? 8 : 4;
  const int64_t shared_bytes = StagedLayout<T>(call.batch_size, call.n_classes, group, call.variance != nullptr).all;
  if (shared_bytes + kPointWarps * int64_t(sizeof(double)) > launch.max_shared_bytes()) {
    sum_in_place<kind>(launch, call, logits);
  } else if (group == 8) {
    sum_staged<kind, 8>(launch, call, shared_bytes);
  } else {
    sum_staged<kind, 4>(launch, call, shared_bytes);
  }
  LAPAL_CHECK_LAUNCH();
}

template <class T>
void lookahead_loss_impl(const Launch& launch, Loss kind, const Lookahead<T>& call, const Tensor& logits,
                         double* sums) {
  switch (kind) {
    case Loss::cross_entropy:
      sum_of_kind<Loss::cross_entropy>(launch, call, logits);
      break;
    case Loss::zero_one:
      sum_of_kind<Loss::zero_one>(launch, call, logits);
      break;
    case Loss::brier:
      sum_of_kind<Loss::brier>(launch, call, logits);
      break;
    case Loss::expected_cross_entropy:
      sum_of_kind<Loss::expected_cross_entropy>(launch, call, logits);
      break;
    case Loss::expected_zero_one:
      sum_of_kind<Loss::expected_zero_one>(launch, call, logits);
      break;
  }
  const int64_t n_items = call.n_hypotheses;
  LAPAL_LAUNCH(add_parts_kernel<double>, launch.grid((n_items + kPointBlock - 1) / kPointBlock), kPointBlock, 0,
               launch.stream(), call.partial_sums, call.parts.n_parts, n_items, sums);
  LAPAL_CHECK_LAUNCH();
}

Tensor lookahead_loss_cuda(const Tensor& logits, const Tensor& columns, const Tensor& batches,
                           const Tensor& coefficients, const std::optional<Tensor>& triangle,
                           const std::optional<Tensor>& beta, const std::optional<Tensor>& variance,
                           const std::optional<Tensor>& targets, const std::string& loss_kind, double kappa) {
  const LookaheadLossArguments checked =
      check_lookahead_loss(logits, columns, batches, coefficients, triangle, beta, variance, targets, loss_kind);
  const int64_t n_eval = checked.n_eval, n_hypotheses = checked.n_hypotheses;

  const Launch launch(logits);
  if (n_hypotheses == 0 || n_eval == 0) {
    return torch::stable::new_zeros(logits, {n_hypotheses}, ScalarType::Double);
  }
  Tensor sums = torch::stable::new_empty(logits, {n_hypotheses}, ScalarType::Double);
  const Tensor dense_batches = torch::stable::contiguous(batches);
  const Tensor dense_coefficients = torch::stable::contiguous(coefficients);
  std::optional<Tensor> dense_triangle, dense_beta;
  if (checked.linked) {
    dense_triangle = torch::stable::contiguous(*triangle);
    dense_beta = torch::stable::contiguous(*beta);
  }
  dispatch_floating(checked.dtype, kOp, [&](auto tag) {
    using scalar_t = typename decltype(tag)::type;
    Lookahead<scalar_t> call{};
    call.logits = logits.const_data_ptr<scalar_t>();
    call.class_stride = logits.stride(0);
    call.logit_stride = logits.stride(1);
    call.columns = columns.const_data_ptr<scalar_t>();
    call.row_stride = columns.stride(0);
    call.column_stride = columns.stride(1);
    call.batches = dense_batches.const_data_ptr<int64_t>();
    call.coefficients = dense_coefficients.const_data_ptr<scalar_t>();
    if (checked.linked) {
      call.triangle = dense_triangle->const_data_ptr<scalar_t>();
      call.beta = dense_beta->const_data_ptr<scalar_t>();
      call.variance = variance->const_data_ptr<scalar_t>();
      call.variance_stride = variance->stride(0);
    }
    if (needs_of(checked.kind).targets) {
      call.targets = targets->const_data_ptr<int64_t>();
      call.target_stride = targets->stride(0);
    }
    call.n_hypotheses = n_hypotheses;
    call.n_rows = checked.n_rows;
    call.batch_size = int(checked.batch_size);
    call.n_classes = int(checked.n_classes);
    call.kappa = scalar_t(kappa);
    call.parts = parts_of(n_eval, kRoundPoints<scalar_t>);
    Tensor partial_sums = torch::stable::new_empty(logits, {call.parts.n_parts * n_hypotheses}, ScalarType::Double);
    call.partial_sums = partial_sums.mutable_data_ptr<double>();
    lookahead_loss_impl(launch, checked.kind, call, logits, sums.mutable_data_ptr<double>());
  });
  return sums;
}

}  // namespace

LAPAL_CUDA_IMPL(m) {
  m.impl("lookahead_loss", TORCH_BOX(&lookahead_loss_cuda));
}
