#include <tuple>

#include "cuda/ops/directional_derivatives.cuh"
#include "cuda/shared/launch.cuh"
#include "torch/arguments/directional_derivatives.h"
#include "torch/rows.h"

namespace {

using namespace lapal_ext;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

std::tuple<Tensor, Tensor, Tensor> directional_derivatives_cuda(const Tensor& logits, const Tensor& direction,
                                                                const Tensor& targets, const Tensor& trust,
                                                                double step) {
  const DirectionalDerivativesArguments call = check_directional_derivatives(logits, direction, targets, trust);
  const Launch launch(logits);
  if (call.n_rows == 0) {
    const auto zero = [&] { return torch::stable::new_zeros(logits, {}, ScalarType::Double); };
    return {zero(), zero(), zero()};
  }
  Tensor first = torch::stable::new_empty(logits, {}, ScalarType::Double);
  Tensor second = torch::stable::new_empty(logits, {}, ScalarType::Double);
  Tensor largest = torch::stable::new_empty(logits, {}, ScalarType::Double);
  const int64_t n_tiles = line_tiles(call.n_rows);
  const Tensor partial = torch::stable::new_empty(logits, {3 * n_tiles}, ScalarType::Double);
  dispatch_floating(call.dtype, kOp, [&](auto tag) {
    using scalar_t = typename decltype(tag)::type;
    Line<scalar_t> line{};
    line.logits = rows_of_lines<scalar_t>(logits);
    line.direction = rows_of_lines<scalar_t>(direction);
    line.targets = targets.const_data_ptr<int64_t>();
    line.target_stride = targets.stride(0);
    line.trust = trust.const_data_ptr<scalar_t>();
    line.trust_stride = trust.stride(0);
    line.step = scalar_t(step);
    line.partial = partial.mutable_data_ptr<double>();
    LAPAL_LAUNCH(derivatives_kernel<scalar_t>, launch.grid(n_tiles), kLineBlock, 0, launch.stream(), line);
    LAPAL_CHECK_LAUNCH();
  });
  LAPAL_LAUNCH(join_derivatives_kernel, 1, kJoinBlock, 0, launch.stream(), partial.const_data_ptr<double>(), n_tiles,
               first.mutable_data_ptr<double>(), second.mutable_data_ptr<double>(), largest.mutable_data_ptr<double>());
  LAPAL_CHECK_LAUNCH();
  return {first, second, largest};
}

}  // namespace

LAPAL_CUDA_IMPL(m) {
  m.impl("directional_derivatives", TORCH_BOX(&directional_derivatives_cuda));
}
