// First and second derivative of the cross-entropy of many rows along one direction.
//
//   L'(s) = sum_n t_n (p_n.v_n - v_n[y_n]),  L''(s) = sum_n t_n (p_n.v_n^2 - (p_n.v_n)^2),  p_n = softmax(z_n + s v_n),
//
// and the largest p_nk |v_nk - p_n.v_n|.
//
// Shapes: logits z [C, N], direction v [C, N], targets y [N], trust t [N] -> three numbers in double.
//
// Layout: rows are in lanes, a tile of rows at a time (cpu/passes/class_lines.h). The exponentials of a tile stay in
// second-level cache between the passes. v is taken relative to that of the winner: where it has nearly all
// probability, v and its mean are nearly the same number.
//
// Parallel over tiles. Each tile has its sums, which are added in order, so the result is the same for any number of
// threads.
//
// Limit: N C exponentials, and one read of 2 N C numbers from memory.
#include "torch/arguments/directional_derivatives.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <tuple>

#include "cpu/passes/class_lines.h"
#include "cpu/simd/scratch.h"
#include "torch/dispatch.h"
#include "torch/parallel_tiles.h"

namespace {

using namespace lapal_ext;
using torch::stable::Tensor;

constexpr int64_t kGrainWork = 1 << 14;  // logits per worker; with fewer, starting the worker costs more

template <class T>
struct Line {
  const T* logits;
  const T* direction;
  const int64_t* targets;
  const T* trust;
  int64_t n_rows, n_classes;
  T step;
};

// What one tile adds to the result.
struct TileSums {
  double first, second, largest;
};

// The larger of two numbers, or NaN if one of them is.
template <class T>
LAPAL_HD T larger(T a, T b) {
  return a != a || b <= a ? a : b;
}

template <class T>
LAPAL_HD TileSums derivatives_of_tile(const Line<T>& line, int64_t start, T* exponentials) {
  const int64_t n_rows = line.n_rows, count = std::min(kLineRows, n_rows - start);
  const T *logits = line.logits + start, *direction = line.direction + start, *trust = line.trust + start;
  const T step = line.step;
  LineSoftmax<T> softmax;
  softmax.set(
      line.n_classes, count,
      [=](int64_t k, int64_t i) { return logits[k * n_rows + i] + step * direction[k * n_rows + i]; }, exponentials,
      kLineRows);
  alignas(kBlockBytes) T origin[kLineRows];
  alignas(kBlockBytes) T target[kLineRows];
  alignas(kBlockBytes) T mean[kLineRows];
  alignas(kBlockBytes) T square[kLineRows];
  alignas(kBlockBytes) T largest[kLineRows];
  for (int64_t i = 0; i < count; ++i) {
    origin[i] = direction[softmax.winner[i] * n_rows + i];
    target[i] = direction[line.targets[start + i] * n_rows + i];
  }
#pragma omp simd
  for (int64_t i = 0; i < count; ++i) {
    mean[i] = square[i] = largest[i] = T(0);
  }
  for (int64_t k = 0; k < line.n_classes; ++k) {
    const T *v = direction + k * n_rows, *e = exponentials + k * kLineRows;
#pragma omp simd
    for (int64_t i = 0; i < count; ++i) {
      mean[i] += e[i] * (v[i] - origin[i]);
    }
  }
#pragma omp simd
  for (int64_t i = 0; i < count; ++i) {
    mean[i] *= softmax.inverse[i];
  }
  for (int64_t k = 0; k < line.n_classes; ++k) {
    const T *v = direction + k * n_rows, *e = exponentials + k * kLineRows;
#pragma omp simd
    for (int64_t i = 0; i < count; ++i) {
      const T deviation = (v[i] - origin[i]) - mean[i];
      const T rate = e[i] * softmax.inverse[i] * deviation;
      square[i] += rate * deviation;
      largest[i] = larger(largest[i], rate < T(0) ? -rate : rate);
    }
  }
  TileSums sums{0.0, 0.0, 0.0};
#pragma omp simd
  for (int64_t i = 0; i < count; ++i) {
    mean[i] = trust[i] * (mean[i] - (target[i] - origin[i]));
    square[i] *= trust[i];
  }
  sums.first = sum_of_line(mean, count);
  sums.second = sum_of_line(square, count);
  for (int64_t i = 0; i < count; ++i) {
    sums.largest = larger(sums.largest, double(largest[i]));
  }
  return sums;
}

#define LAPAL_DERIVATIVE_KERNEL(T)                                                                       \
  LAPAL_CLONES void derivatives_kernel(const Line<T>& line, int64_t begin, int64_t end, T* exponentials, \
                                       TileSums* sums) {                                                 \
    for (int64_t tile = begin; tile < end; ++tile) {                                                     \
      sums[tile] = derivatives_of_tile(line, tile * kLineRows, exponentials);                            \
    }                                                                                                    \
  }
LAPAL_DERIVATIVE_KERNEL(float)
LAPAL_DERIVATIVE_KERNEL(double)
#undef LAPAL_DERIVATIVE_KERNEL

std::tuple<Tensor, Tensor, Tensor> directional_derivatives_cpu(const Tensor& logits, const Tensor& direction,
                                                               const Tensor& targets, const Tensor& trust,
                                                               double step) {
  const DirectionalDerivativesArguments call = check_directional_derivatives(logits, direction, targets, trust);
  const Tensor dense_logits = torch::stable::contiguous(logits), dense_direction = torch::stable::contiguous(direction);
  const Tensor dense_targets = torch::stable::contiguous(targets), dense_trust = torch::stable::contiguous(trust);
  check_index_range(dense_targets, call.n_classes, kOp, "targets");
  Tensor first = torch::stable::new_zeros(logits, {}, ScalarType::Double);
  Tensor second = torch::stable::new_zeros(logits, {}, ScalarType::Double);
  Tensor largest = torch::stable::new_zeros(logits, {}, ScalarType::Double);
  if (call.n_rows == 0) {
    return {first, second, largest};
  }
  const int64_t n_tiles = (call.n_rows + kLineRows - 1) / kLineRows;
  const Scratch<TileSums> sums(n_tiles);
  STD_TORCH_CHECK(sums, kOp, ": out of memory");
  dispatch_floating(call.dtype, kOp, [&](auto tag) {
    using scalar_t = typename decltype(tag)::type;
    const Line<scalar_t> line{dense_logits.const_data_ptr<scalar_t>(),
                              dense_direction.const_data_ptr<scalar_t>(),
                              dense_targets.const_data_ptr<int64_t>(),
                              dense_trust.const_data_ptr<scalar_t>(),
                              call.n_rows,
                              call.n_classes,
                              scalar_t(step)};
    const auto make_memory = [&] { return Scratch<scalar_t>(call.n_classes * kLineRows); };
    parallel_tiles(n_tiles, 1 + kGrainWork / (call.n_classes * kLineRows), kOp, make_memory,
                   [&](int64_t begin, int64_t end, const auto& exponentials) {
                     derivatives_kernel(line, begin, end, exponentials.data(), sums.data());
                   });
  });
  TileSums total{0.0, 0.0, 0.0};
  for (int64_t tile = 0; tile < n_tiles; ++tile) {
    const TileSums& some = sums.data()[tile];
    total.first += some.first;
    total.second += some.second;
    total.largest = larger(total.largest, some.largest);
  }
  *first.mutable_data_ptr<double>() = total.first;
  *second.mutable_data_ptr<double>() = total.second;
  *largest.mutable_data_ptr<double>() = total.largest;
  return {first, second, largest};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(lapal_ext, CPU, m) {
  m.impl("directional_derivatives", TORCH_BOX(&directional_derivatives_cpu));
}
