// Monte Carlo predictive and its mean entropy, streamed over the samples.
//
//   mean_n = 1/S sum_s softmax(z_n + sqrt(v_n) noise_s),  entropy_n = 1/S sum_s of the entropies of the same.
//
// Shapes: logits z [N, C], variance v [N], noise [S, C] -> mean [N, C], entropy [N].
//
// Layout: rows lie in lanes. A block's logits are packed as [C][lane] and so are its sums; a sample costs three passes
// over classes, all in the first-level cache: the largest logit, the exponentials and their sums, and their
// probabilities. What a sample leaves of each row for its entropy is worth one logarithm, taken at once.
//
// The probabilities of at most kChunk samples are added in the dtype of the inputs, and these sums in float64: the
// error does not grow with S.
//
// Parallel over blocks of rows; each lane's sums have one order, so equal rows agree to the bit.
//
// Limit: arithmetic. One exponential per (row, sample, class) and about 10 other operations.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <atomic>
#include <tuple>

#include "checks.h"
#include "cpu/row_block.h"
#include "cpu/simd.h"
#include "dispatch.h"

namespace {

using namespace lapal_ext;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr const char* kOp = "mc_predictive";
constexpr int64_t kChunk = 16;  // samples

// One block of rows, class-major.
template <class T>
struct Block {
  const T* logits;     // [C][lane]
  const T* deviation;  // [lane]
  const T* noise;      // [S, C]
  int64_t n_classes;
  T* drawn;         // [C][lane]
  T* sums;          // [C][lane] of one chunk
  double* mean;     // [C][lane]
  double* entropy;  // [lane]
};

// Adds one sample to the sums of its chunk.
template <class T>
LAPAL_HD void add_sample(const Block<T>& block, const T* noise, T* entropies) {
  constexpr int kL = kLanes<T>;
  const int64_t n_classes = block.n_classes;
  alignas(kBlockBytes) T deviation[kL];
  alignas(kBlockBytes) T best[kL];
  alignas(kBlockBytes) T total[kL];
  alignas(kBlockBytes) T energy[kL];
  alignas(kBlockBytes) T tops[kL];  // classes as large as the largest: one, or more in a tie
#pragma omp simd
  for (int lane = 0; lane < kL; ++lane) {
    deviation[lane] = block.deviation[lane];
    best[lane] = -__builtin_inff();
    total[lane] = T(0);
    energy[lane] = T(0);
    tops[lane] = T(-1);
  }
  for (int64_t k = 0; k < n_classes; ++k) {
    const T offset = noise[k];
#pragma omp simd
    for (int lane = 0; lane < kL; ++lane) {
      const T value = block.logits[k * kL + lane] + deviation[lane] * offset;
      block.drawn[k * kL + lane] = value;
      best[lane] = value > best[lane] ? value : best[lane];
    }
  }
  for (int64_t k = 0; k < n_classes; ++k) {
#pragma omp simd
    for (int lane = 0; lane < kL; ++lane) {
      const T shifted = block.drawn[k * kL + lane] - best[lane];
      const T term = exp_nonpositive(shifted);
      const bool largest = shifted >= T(0);
      block.drawn[k * kL + lane] = term;
      total[lane] += largest ? T(0) : term;
      tops[lane] += largest ? T(1) : T(0);
      energy[lane] += term * shifted;
    }
  }
#pragma omp simd
  for (int lane = 0; lane < kL; ++lane) {
    const T rest = total[lane] + tops[lane];
    entropies[lane] += entropy(rest, energy[lane]);
    total[lane] = T(1) / (T(1) + rest);
  }
  for (int64_t k = 0; k < n_classes; ++k) {
#pragma omp simd
    for (int lane = 0; lane < kL; ++lane) {
      block.sums[k * kL + lane] += block.drawn[k * kL + lane] * total[lane];
    }
  }
}

template <class T>
LAPAL_HD void average_samples(const Block<T>& block, int64_t n_samples) {
  constexpr int kL = kLanes<T>;
  const int64_t size = block.n_classes * kL;
  for (int64_t begin = 0; begin < n_samples; begin += kChunk) {
    const int64_t end = begin + kChunk < n_samples ? begin + kChunk : n_samples;
    alignas(kBlockBytes) T entropies[kL] = {};
    for (int64_t i = 0; i < size; ++i) {
      block.sums[i] = T(0);
    }
    for (int64_t s = begin; s < end; ++s) {
      add_sample(block, block.noise + s * block.n_classes, entropies);
    }
#pragma omp simd
    for (int64_t i = 0; i < size; ++i) {
      block.mean[i] += double(block.sums[i]);
    }
#pragma omp simd
    for (int lane = 0; lane < kL; ++lane) {
      block.entropy[lane] += double(entropies[lane]);
    }
  }
}

LAPAL_CLONES void mc_predictive_kernel(const Block<float>& block, int64_t n_samples) {
  average_samples(block, n_samples);
}

LAPAL_CLONES void mc_predictive_kernel(const Block<double>& block, int64_t n_samples) {
  average_samples(block, n_samples);
}

// Tensors of a call; logits and variance with their strides, the rest contiguous.
struct Inputs {
  const Tensor& logits;
  const Tensor& variance;
  const Tensor& noise;
};

template <class T>
void mc_predictive_impl(const Inputs& inputs, T* mean, T* entropy) {
  constexpr int kL = kLanes<T>;
  const int64_t n_rows = inputs.logits.size(0), n_classes = inputs.logits.size(1), n_samples = inputs.noise.size(0);
  const int64_t row_stride = inputs.logits.stride(0), class_stride = inputs.logits.stride(1);
  const T* logits = inputs.logits.const_data_ptr<T>();
  const T* variance = inputs.variance.const_data_ptr<T>();
  const int64_t variance_stride = inputs.variance.stride(0);
  const int64_t n_blocks = (n_rows + kL - 1) / kL;
  std::atomic<bool> out_of_memory{false};
  torch::stable::parallel_for(0, n_blocks, 1, [&](int64_t begin, int64_t end) {
    const Scratch<T> scratch(3 * n_classes * kL);
    const Scratch<double> sums(n_classes * kL);
    if (!scratch || !sums) {
      out_of_memory = true;
      return;
    }
    T* packed = scratch.data();
    alignas(kBlockBytes) T deviation[kL];
    alignas(kBlockBytes) double entropies[kL];
    Block<T> block{};
    block.logits = packed;
    block.deviation = deviation;
    block.noise = inputs.noise.const_data_ptr<T>();
    block.n_classes = n_classes;
    block.drawn = packed + n_classes * kL;
    block.sums = packed + 2 * n_classes * kL;
    block.mean = sums.data();
    block.entropy = entropies;
    for (int64_t index = begin; index < end; ++index) {
      const int64_t start = index * kL, valid = std::min<int64_t>(kL, n_rows - start);
      read_rows(logits + start * row_stride, row_stride, class_stride, n_classes, valid, packed);
      read_values(variance + start * variance_stride, variance_stride, valid, deviation);
      for (int lane = 0; lane < kL; ++lane) {
        deviation[lane] = square_root(deviation[lane] < T(0) ? T(0) : deviation[lane]);
        entropies[lane] = 0.0;
      }
      std::fill(block.mean, block.mean + n_classes * kL, 0.0);
      mc_predictive_kernel(block, n_samples);
      for (int lane = 0; lane < valid; ++lane) {
        for (int64_t k = 0; k < n_classes; ++k) {
          mean[(start + lane) * n_classes + k] = T(block.mean[k * kL + lane] / double(n_samples));
        }
        entropy[start + lane] = T(entropies[lane] / double(n_samples));
      }
    }
  });
  STD_TORCH_CHECK(!out_of_memory, kOp, ": out of memory");
}

std::tuple<Tensor, Tensor> mc_predictive_cpu(const Tensor& logits, const Tensor& variance, const Tensor& noise) {
  check_dim(logits, 2, kOp, "logits");
  const int64_t n_rows = logits.size(0), n_classes = logits.size(1);
  const ScalarType dtype = logits.scalar_type();
  STD_TORCH_CHECK(n_classes > 0, kOp, ": logits must have at least one class");
  check_shape(variance, {n_rows}, kOp, "variance");
  check_shape(noise, {kAnySize, n_classes}, kOp, "noise");
  check_dtype(variance, dtype, kOp, "variance");
  check_dtype(noise, dtype, kOp, "noise");

  Tensor mean = torch::stable::new_empty(logits, {n_rows, n_classes});
  Tensor entropy = torch::stable::new_empty(logits, {n_rows});
  if (n_rows == 0) {
    return {mean, entropy};
  }
  const Tensor dense_noise = torch::stable::contiguous(noise);
  const Inputs inputs{logits, variance, dense_noise};
  dispatch_floating(dtype, kOp, [&](auto tag) {
    using scalar_t = typename decltype(tag)::type;
    mc_predictive_impl(inputs, mean.mutable_data_ptr<scalar_t>(), entropy.mutable_data_ptr<scalar_t>());
  });
  return {mean, entropy};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(lapal_ext, CPU, m) {
  m.impl("mc_predictive", TORCH_BOX(&mc_predictive_cpu));
}
