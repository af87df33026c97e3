#include <tuple>

#include "cuda/ops/softmax_gradient.cuh"
#include "cuda/shared/launch.cuh"
#include "torch/arguments/softmax_gradient.h"
#include "torch/rows.h"

namespace {

using namespace lapal_ext;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Parts of at least kLeastPartRows, and not more than give kWantedPairs pairs.
EvaluationParts parts_of_rows(int64_t n_padded, int64_t n_tiles) {
  const int64_t wanted = std::max<int64_t>(1, kWantedPairs / n_tiles);
  const int64_t steps = (n_padded + kLeastPartRows - 1) / kLeastPartRows;
  const int64_t part_rows = (steps + wanted - 1) / wanted * kLeastPartRows;
  return {n_padded, part_rows, (n_padded + part_rows - 1) / part_rows};
}

template <class T>
Lines<T> lines_of(const Tensor& logits, const Tensor& targets, const Tensor& trust, const Tensor& directions) {
  Lines<T> lines{};
  lines.logits = rows_of_lines<T>(logits);
  lines.directions = {directions.const_data_ptr<T>(), directions.stride(2), directions.stride(1), logits.size(1),
                      logits.size(0)};
  lines.direction_stride = directions.stride(0);
  lines.n_directions = directions.size(0);
  lines.targets = targets.const_data_ptr<int64_t>();
  lines.target_stride = targets.stride(0);
  lines.trust = trust.const_data_ptr<T>();
  lines.trust_stride = trust.stride(0);
  return lines;
}

// Without features there are no tiles, and no parts.
template <class T>
Product<T> product_of(const Tensor& features, const Tensor& factors) {
  const int64_t n_rows = features.size(0);
  const int64_t n_padded = (n_rows + kProductDepth - 1) / kProductDepth * kProductDepth, padding = n_padded - n_rows;
  Product<T> product{};
  product.features = {features.const_data_ptr<T>(), features.stride(1), features.stride(0), features.size(1), padding};
  product.factors = {factors.const_data_ptr<T>(), n_rows, 1, factors.size(0), padding};
  if (product.n_tiles() > 0) {
    product.parts = parts_of_rows(n_padded, product.n_tiles());
  }
  return product;
}

template <class T>
void softmax_gradient_impl(const Launch& launch, const Lines<T>& lines, const Product<T>& product,
                           const Results<T>& results) {
  LAPAL_LAUNCH(factors_kernel<T>, launch.grid(results.n_tiles), kLineBlock, 0, launch.stream(), lines);
  LAPAL_CHECK_LAUNCH();
  if (product.n_tiles() > 0) {
    const unsigned grid = launch.grid(product.n_tiles() * product.parts.n_parts);
    LAPAL_LAUNCH(product_kernel<T>, grid, kProductBlock, 0, launch.stream(), product);
    LAPAL_CHECK_LAUNCH();
  }
  const unsigned grid = launch.grid(1 + (results.n_gradient + results.n_products) / kPointBlock);
  LAPAL_LAUNCH(add_results_kernel<T>, grid, kPointBlock, 0, launch.stream(), results);
  LAPAL_CHECK_LAUNCH();
}

std::tuple<Tensor, Tensor, Tensor> softmax_gradient_cuda(const Tensor& features, const Tensor& logits,
                                                         const Tensor& targets, const Tensor& trust,
                                                         const Tensor& directions) {
  const SoftmaxGradientArguments call = check_softmax_gradient(features, logits, targets, trust, directions);
  const int64_t n_rows = call.n_rows, n_features = call.n_features, n_classes = call.n_classes;
  const int64_t n_directions = call.n_directions;
  const Launch launch(features);
  if (n_rows == 0) {
    return {torch::stable::new_zeros(features, {}, ScalarType::Double),
            torch::stable::new_zeros(features, {n_classes, n_features}),
            torch::stable::new_zeros(features, {n_directions, n_classes, n_features})};
  }
  Tensor loss = torch::stable::new_empty(features, {}, ScalarType::Double);
  Tensor gradient = torch::stable::new_empty(features, {n_classes, n_features});
  Tensor products = torch::stable::new_empty(features, {n_directions, n_classes, n_features});
  const Tensor factors = torch::stable::new_empty(features, {(1 + n_directions) * n_classes, n_rows});
  const Tensor losses = torch::stable::new_empty(features, {line_tiles(n_rows)}, ScalarType::Double);
  dispatch_floating(call.dtype, kOp, [&](auto tag) {
    using scalar_t = typename decltype(tag)::type;
    Lines<scalar_t> lines = lines_of<scalar_t>(logits, targets, trust, directions);
    lines.factors = factors.mutable_data_ptr<scalar_t>();
    lines.losses = losses.mutable_data_ptr<double>();
    Product<scalar_t> product = product_of<scalar_t>(features, factors);
    const Tensor sums =
        torch::stable::new_empty(features, {product.parts.n_parts, factors.size(0), n_features}, ScalarType::Double);
    product.partial_sums = sums.mutable_data_ptr<double>();
    Results<scalar_t> results{};
    results.losses = lines.losses;
    results.n_tiles = line_tiles(n_rows);
    results.partial_sums = product.partial_sums;
    results.n_parts = product.parts.n_parts;
    results.loss = loss.mutable_data_ptr<double>();
    results.gradient = gradient.mutable_data_ptr<scalar_t>();
    results.n_gradient = n_classes * n_features;
    results.products = products.mutable_data_ptr<scalar_t>();
    results.n_products = n_directions * n_classes * n_features;
    softmax_gradient_impl(launch, lines, product, results);
  });
  return {loss, gradient, products};
}

}  // namespace

LAPAL_CUDA_IMPL(m) {
  m.impl("softmax_gradient", TORCH_BOX(&softmax_gradient_cuda));
}
