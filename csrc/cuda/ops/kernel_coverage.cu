#include "cuda/ops/kernel_coverage.cuh"
#include "cuda/shared/launch.cuh"
#include "torch/arguments/kernel_coverage.h"

namespace {

using namespace lapal_ext;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// `partial_sums` has room for `at_a_time` rows.
template <class T>
void kernel_coverage_impl(const Launch& launch, const Coverage<T>& all, int64_t at_a_time, double* gains) {
  const int64_t n_rows = all.rows.n_rows, n_parts = all.parts.n_parts;
  for (int64_t n = 0; n < n_rows; n += at_a_time) {
    Coverage<T> some = all;
    some.rows.data += n * all.rows.row_stride;
    some.rows.n_rows = std::min(at_a_time, n_rows - n);
    const int64_t n_tiles = (some.rows.n_rows + kProductRows - 1) / kProductRows;
    LAPAL_LAUNCH(kernel_coverage_kernel<T>, launch.grid(n_tiles * n_parts), kProductBlock, 0, launch.stream(), some);
    LAPAL_CHECK_LAUNCH();
    const unsigned grid = launch.grid((some.rows.n_rows + kPointBlock - 1) / kPointBlock);
    LAPAL_LAUNCH(add_parts_kernel<double>, grid, kPointBlock, 0, launch.stream(), some.partial_sums, n_parts,
                 some.rows.n_rows, gains + n);
    LAPAL_CHECK_LAUNCH();
  }
}

template <class T>
PaddedRows<T> padded(const Tensor& rows, int64_t n_padded) {
  return {rows.const_data_ptr<T>(), rows.stride(0), rows.stride(1), rows.size(0), n_padded - rows.size(1)};
}

Tensor kernel_coverage_cuda(const Tensor& rows, const Tensor& references, const Tensor& weight, const Tensor& covered,
                            double inverse_squared_bandwidth) {
  const KernelCoverageArguments call = check_kernel_coverage(rows, references, weight, covered);
  const int64_t n_rows = call.n_rows, n_references = call.n_references;

  const Launch launch(rows);
  if (n_rows == 0 || n_references == 0) {
    return torch::stable::new_zeros(rows, {n_rows}, ScalarType::Double);
  }
  Tensor gains = torch::stable::new_empty(rows, {n_rows}, ScalarType::Double);
  dispatch_floating(call.dtype, kOp, [&](auto tag) {
    using scalar_t = typename decltype(tag)::type;
    const EvaluationParts parts = parts_of(n_references, ProductTile<scalar_t>::kCols);
    const int64_t n_tiles = (n_rows + kProductRows - 1) / kProductRows;
    const int64_t n_pairs = kPairsPerBlock * int64_t(launch.grid(n_tiles * parts.n_parts));
    const int64_t at_a_time = std::min(n_rows, kProductRows * std::max<int64_t>(1, n_pairs / parts.n_parts));
    const Tensor partial_sums = torch::stable::new_empty(rows, {parts.n_parts * at_a_time}, ScalarType::Double);
    // Vectors without features are multiplied as well: all products are zero.
    const int64_t n_padded =
        std::max<int64_t>(1, (call.n_features + kProductDepth - 1) / kProductDepth) * kProductDepth;
    Coverage<scalar_t> all{};
    all.rows = padded<scalar_t>(rows, n_padded);
    all.references = padded<scalar_t>(references, n_padded);
    all.n_padded = n_padded;
    all.weight = weight.const_data_ptr<scalar_t>();
    all.weight_stride = weight.stride(0);
    all.covered = covered.const_data_ptr<scalar_t>();
    all.covered_stride = covered.stride(0);
    all.scale = scalar_t(2.0 * inverse_squared_bandwidth);
    all.parts = parts;
    all.partial_sums = partial_sums.mutable_data_ptr<double>();
    kernel_coverage_impl(launch, all, at_a_time, gains.mutable_data_ptr<double>());
  });
  return gains;
}

}  // namespace

LAPAL_CUDA_IMPL(m) {
  m.impl("kernel_coverage", TORCH_BOX(&kernel_coverage_cuda));
}
