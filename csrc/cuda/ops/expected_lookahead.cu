#include <string>

#include "cuda/ops/expected_lookahead.cuh"
#include "cuda/shared/launch.cuh"
#include "torch/arguments/expected_lookahead.h"

namespace {

using namespace lapal_ext;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr int64_t kLeastBlocks = 3;  // of a multiprocessor; with fewer, computing the weights again is faster

template <Loss kind, class T>
void sum_of_kind(const Launch& launch, const Candidates<T>& call) {
  const unsigned grid = launch.grid(call.parts.n_parts * call.n_candidates);
  const int64_t shared_bytes = call.n_classes * int64_t(sizeof(T)) * (kPointBlock + 1);
  if (kLeastBlocks * shared_bytes <= launch.max_shared_bytes()) {
    constexpr auto kKernel = expected_lookahead_kernel<kind, true, T>;
    launch.allow_shared_bytes(kKernel, shared_bytes);
    LAPAL_LAUNCH(kKernel, grid, kPointBlock, size_t(shared_bytes), launch.stream(), call);
  } else {
    LAPAL_LAUNCH((expected_lookahead_kernel<kind, false, T>), grid, kPointBlock, 0, launch.stream(), call);
  }
  LAPAL_CHECK_LAUNCH();
}

template <class T>
void expected_lookahead_impl(const Launch& launch, Loss kind, const Candidates<T>& call, double* sums) {
  switch (kind) {
    case Loss::expected_zero_one:
      sum_of_kind<Loss::expected_zero_one>(launch, call);
      break;
    case Loss::expected_cross_entropy:
      sum_of_kind<Loss::expected_cross_entropy>(launch, call);
      break;
    case Loss::cross_entropy:
    case Loss::zero_one:
    case Loss::brier:
      break;  // they need targets: the check of the arguments refuses them
  }
  const int64_t n_items = call.n_candidates;
  LAPAL_LAUNCH(add_parts_kernel<double>, launch.grid((n_items + kPointBlock - 1) / kPointBlock), kPointBlock, 0,
               launch.stream(), call.partial_sums, call.parts.n_parts, n_items, sums);
  LAPAL_CHECK_LAUNCH();
}

Tensor expected_lookahead_cuda(const Tensor& logits, const Tensor& columns, const Tensor& step_lengths,
                               const Tensor& probabilities, const std::string& loss_kind) {
  const ExpectedLookaheadArguments checked =
      check_expected_lookahead(logits, columns, step_lengths, probabilities, loss_kind);
  const int64_t n_classes = checked.n_classes, n_eval = checked.n_eval, n_candidates = checked.n_candidates;

  const Launch launch(logits);
  if (n_candidates == 0 || n_eval == 0 || n_classes == 1) {  // a single class is certain
    return torch::stable::new_zeros(logits, {n_candidates}, ScalarType::Double);
  }
  Tensor sums = torch::stable::new_empty(logits, {n_candidates}, ScalarType::Double);
  const Tensor dense_probabilities = torch::stable::contiguous(probabilities);
  dispatch_floating(checked.dtype, kOp, [&](auto tag) {
    using scalar_t = typename decltype(tag)::type;
    Candidates<scalar_t> call{};
    call.logits = logits.const_data_ptr<scalar_t>();
    call.class_stride = logits.stride(0);
    call.logit_stride = logits.stride(1);
    call.columns = columns.const_data_ptr<scalar_t>();
    call.row_stride = columns.stride(0);
    call.column_stride = columns.stride(1);
    call.step_lengths = step_lengths.const_data_ptr<scalar_t>();
    call.length_stride = step_lengths.stride(0);
    call.probabilities = dense_probabilities.const_data_ptr<scalar_t>();
    call.n_candidates = n_candidates;
    call.n_classes = int(n_classes);
    call.parts = parts_of(n_eval, kCandidatePoints);
    Tensor partial_sums = torch::stable::new_empty(logits, {call.parts.n_parts * n_candidates}, ScalarType::Double);
    call.partial_sums = partial_sums.mutable_data_ptr<double>();
    expected_lookahead_impl(launch, checked.kind, call, sums.mutable_data_ptr<double>());
  });
  return sums;
}

}  // namespace

LAPAL_CUDA_IMPL(m) {
  m.impl("expected_lookahead", TORCH_BOX(&expected_lookahead_cuda));
}
