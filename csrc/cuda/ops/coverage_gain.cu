#include "cuda/ops/coverage_gain.cuh"
#include "cuda/shared/launch.cuh"
#include "torch/arguments/coverage_gain.h"

namespace {

using namespace lapal_ext;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

template <class T>
void coverage_gain_impl(const Launch& launch, const Gains<T>& call, double* gains) {
  const int64_t n_tiles = (call.n_rows + kGainRows - 1) / kGainRows;
  const unsigned grid = launch.grid(n_tiles * call.parts.n_parts);
  if (call.row_stride < call.reference_stride) {
    LAPAL_LAUNCH((coverage_gain_kernel<true, T>), grid, kGainBlock, 0, launch.stream(), call);
  } else {
    LAPAL_LAUNCH((coverage_gain_kernel<false, T>), grid, kGainBlock, 0, launch.stream(), call);
  }
  LAPAL_CHECK_LAUNCH();
  if (call.parts.n_parts > 1) {
    LAPAL_LAUNCH(add_parts_kernel<double>, launch.grid((call.n_rows + kPointBlock - 1) / kPointBlock), kPointBlock, 0,
                 launch.stream(), call.partial_sums, call.parts.n_parts, call.n_rows, gains);
    LAPAL_CHECK_LAUNCH();
  }
}

Tensor coverage_gain_cuda(const Tensor& kernel, const Tensor& weight, const Tensor& covered) {
  const CoverageGainArguments checked = check_coverage_gain(kernel, weight, covered);
  const int64_t n_rows = checked.n_rows, n_references = checked.n_references;

  const Launch launch(kernel);
  if (n_rows == 0 || n_references == 0) {
    return torch::stable::new_zeros(kernel, {n_rows}, ScalarType::Double);
  }
  const EvaluationParts parts = parts_of(n_references, kGainReferences);
  Tensor gains = torch::stable::new_empty(kernel, {n_rows}, ScalarType::Double);
  // A single part is the result.
  const Tensor partial_sums =
      parts.n_parts == 1 ? gains : torch::stable::new_empty(kernel, {parts.n_parts * n_rows}, ScalarType::Double);
  dispatch_floating(checked.dtype, kOp, [&](auto tag) {
    using scalar_t = typename decltype(tag)::type;
    Gains<scalar_t> call{};
    call.kernel = kernel.const_data_ptr<scalar_t>();
    call.row_stride = kernel.stride(0);
    call.reference_stride = kernel.stride(1);
    call.weight = weight.const_data_ptr<scalar_t>();
    call.weight_stride = weight.stride(0);
    call.covered = covered.const_data_ptr<scalar_t>();
    call.covered_stride = covered.stride(0);
    call.n_rows = n_rows;
    call.parts = parts;
    call.partial_sums = partial_sums.mutable_data_ptr<double>();
    coverage_gain_impl(launch, call, gains.mutable_data_ptr<double>());
  });
  return gains;
}

}  // namespace

LAPAL_CUDA_IMPL(m) {
  m.impl("coverage_gain", TORCH_BOX(&coverage_gain_cuda));
}
