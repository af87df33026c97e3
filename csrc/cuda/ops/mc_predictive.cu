#include <tuple>

#include "cuda/ops/mc_predictive.cuh"
#include "cuda/shared/row_launch.cuh"
#include "torch/arguments/mc_predictive.h"

namespace {

using namespace lapal_ext;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

template <int kClasses, class T>
void average_in_lanes(const Launch& launch, unsigned grid, const SampledRows<T>& rows) {
  constexpr auto kKernel = mc_predictive_lane_kernel<kClasses, T>;
  const int64_t shared_bytes = int64_t(kTileSamples) * tile_row_length(int(rows.logits.n_classes)) * sizeof(T);
  launch.allow_shared_bytes(kKernel, shared_bytes);
  LAPAL_LAUNCH(kKernel, grid, kSampleBlock, size_t(shared_bytes), launch.stream(), rows);
}

template <int kPerLane, class T>
void average_in_warps(const Launch& launch, unsigned grid, SampledRows<T> rows) {
  constexpr auto kKernel = mc_predictive_warp_kernel<kPerLane, T>;
  const int64_t sample_bytes = rows.logits.n_classes * int64_t(sizeof(T));
  rows.tile_samples = int(std::max<int64_t>(1, kNoiseBytes / sample_bytes));
  const int64_t shared_bytes =
      kRowWarps * rows.logits.n_classes * int64_t(sizeof(double)) + rows.tile_samples * sample_bytes;
  launch.allow_shared_bytes(kKernel, shared_bytes);
  LAPAL_LAUNCH(kKernel, grid, kSampleBlock, size_t(shared_bytes), launch.stream(), rows);
}

template <class T>
void mc_predictive_impl(const Launch& launch, const SampledRows<T>& rows) {
  constexpr int kMostPerLane = 128 / int(sizeof(T));  // classes; twice as many registers would spill
  const int64_t n_classes = rows.logits.n_classes;
  const unsigned grid = launch.grid((rows.logits.n_rows + kRowWarps - 1) / kRowWarps);
  if (n_classes <= 4) {
    average_in_lanes<4>(launch, grid, rows);
  } else if (n_classes <= 12) {
    average_in_lanes<12>(launch, grid, rows);
  } else if (n_classes <= kFewClasses) {
    average_in_lanes<32>(launch, grid, rows);
  } else if (n_classes <= 4 * kWarpSize) {
    average_in_warps<4>(launch, grid, rows);
  } else if (n_classes <= 12 * kWarpSize) {
    average_in_warps<12>(launch, grid, rows);
  } else if (n_classes <= kMostPerLane * kWarpSize) {
    average_in_warps<kMostPerLane>(launch, grid, rows);
  } else {
    LAPAL_LAUNCH(mc_predictive_long_kernel<T>, grid, kSampleBlock, 0, launch.stream(), rows);
  }
  LAPAL_CHECK_LAUNCH();
}

std::tuple<Tensor, Tensor> mc_predictive_cuda(const Tensor& logits, const Tensor& variance, const Tensor& noise) {
  const McPredictiveArguments call = check_mc_predictive(logits, variance, noise);
  const int64_t n_rows = call.n_rows, n_classes = call.n_classes;

  const Launch launch(logits);
  Tensor mean = torch::stable::new_empty(logits, {n_rows, n_classes});
  Tensor entropy = torch::stable::new_empty(logits, {n_rows});
  if (n_rows == 0) {
    return {mean, entropy};
  }
  const Tensor dense_noise = torch::stable::contiguous(noise);
  dispatch_floating(call.dtype, kOp, [&](auto tag) {
    using scalar_t = typename decltype(tag)::type;
    SampledRows<scalar_t> rows{};
    rows.logits = rows_of_logits<scalar_t>(logits);
    rows.variance = variance.const_data_ptr<scalar_t>();
    rows.variance_stride = variance.stride(0);
    rows.noise = dense_noise.const_data_ptr<scalar_t>();
    rows.n_samples = call.n_samples;
    rows.mean = mean.mutable_data_ptr<scalar_t>();
    rows.entropy = entropy.mutable_data_ptr<scalar_t>();
    mc_predictive_impl(launch, rows);
  });
  return {mean, entropy};
}

}  // namespace

LAPAL_CUDA_IMPL(m) {
  m.impl("mc_predictive", TORCH_BOX(&mc_predictive_cuda));
}
