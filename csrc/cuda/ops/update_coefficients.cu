#include <limits>
#include <string>
#include <tuple>

#include "cuda/ops/update_coefficients.cuh"
#include "cuda/shared/launch.cuh"
#include "torch/arguments/update_coefficients.h"

namespace {

using namespace lapal_ext;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

template <int kBlockSize, class T>
void absorb_batches(const Launch& launch, Recursion<T> call, const Tensor& gram) {
  constexpr auto kKernel = update_coefficients_kernel<kBlockSize, T>;
  constexpr int64_t kScratchBytes = 2 * kBlockSize / kWarpSize * int64_t(sizeof(double));
  const int64_t work_size = Work::size(call.batch_size, call.n_classes);
  const int64_t work_bytes = work_size * int64_t(sizeof(double));
  unsigned grid = launch.grid(call.n_hypotheses);
  int64_t shared_bytes = work_bytes;
  Tensor workspace;
  if (work_bytes + kScratchBytes > launch.max_shared_bytes()) {
    grid = unsigned(std::min<int64_t>(grid, std::max<int64_t>(1, kMaxWorkBytes / work_bytes)));
    workspace = torch::stable::new_empty(gram, {int64_t(grid) * work_size}, ScalarType::Double);
    call.workspace = workspace.mutable_data_ptr<double>();
    shared_bytes = 0;
  }
  launch.allow_shared_bytes(kKernel, shared_bytes);
  LAPAL_LAUNCH(kKernel, grid, kBlockSize, size_t(shared_bytes), launch.stream(), call);
  LAPAL_CHECK_LAUNCH();
}

template <class T>
void update_coefficients_impl(const Launch& launch, const Recursion<T>& call, const Tensor& gram) {
  if (call.n_classes <= 2 * kWarpSize && call.batch_size <= kWarpSize) {
    absorb_batches<kWarpSize>(launch, call, gram);
  } else {
    absorb_batches<kChainBlock>(launch, call, gram);
  }
}

std::tuple<Tensor, Tensor, Tensor, Tensor> update_coefficients_cuda(const Tensor& gram, const Tensor& logits,
                                                                    const Tensor& targets, double gamma,
                                                                    const std::string& step,
                                                                    const std::string& curvature) {
  const UpdateCoefficientsArguments checked = check_update_coefficients(gram, logits, targets, gamma, step, curvature);
  const int64_t n_hypotheses = checked.n_hypotheses, batch_size = checked.batch_size, n_classes = checked.n_classes;

  const Launch launch(gram);
  Tensor coefficients = torch::stable::new_empty(gram, {n_hypotheses, batch_size, n_classes});
  Tensor triangle = torch::stable::new_empty(gram, {n_hypotheses, batch_size, batch_size});
  Tensor beta = torch::stable::new_empty(gram, {n_hypotheses, batch_size});
  Tensor weights = torch::stable::new_empty(gram, {n_hypotheses, batch_size});
  if (n_hypotheses == 0 || batch_size == 0) {
    return {coefficients, triangle, beta, weights};
  }
  const Tensor dense_gram = torch::stable::contiguous(gram);
  const Tensor dense_logits = torch::stable::contiguous(logits);
  const Tensor dense_targets = torch::stable::contiguous(targets);
  dispatch_floating(checked.dtype, kOp, [&](auto tag) {
    using scalar_t = typename decltype(tag)::type;
    Recursion<scalar_t> call{};
    call.gram = dense_gram.const_data_ptr<scalar_t>();
    call.logits = dense_logits.const_data_ptr<scalar_t>();
    call.targets = dense_targets.const_data_ptr<int64_t>();
    call.n_hypotheses = n_hypotheses;
    call.batch_size = batch_size;
    call.n_classes = n_classes;
    call.slack = kPsdSlack * double(std::numeric_limits<scalar_t>::epsilon());
    call.rule = checked.rule;
    call.coefficients = coefficients.mutable_data_ptr<scalar_t>();
    call.triangle = triangle.mutable_data_ptr<scalar_t>();
    call.beta = beta.mutable_data_ptr<scalar_t>();
    call.weights = weights.mutable_data_ptr<scalar_t>();
    update_coefficients_impl(launch, call, gram);
  });
  return {coefficients, triangle, beta, weights};
}

}  // namespace

LAPAL_CUDA_IMPL(m) {
  m.impl("update_coefficients", TORCH_BOX(&update_coefficients_cuda));
}
