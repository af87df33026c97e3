// Monte Carlo predictive and its mean entropy, streamed over the samples.
//
//   mean_n = 1/S sum_s softmax(z_n + sqrt(v_n) noise_s),  entropy_n = 1/S sum_s of the entropies of the same.
//
// Shapes: logits z [N, C], variance v [N], noise [S, C] -> mean [N, C], entropy [N].
//
// Layout: rows lie in lanes. A block's logits are packed as [C][lane] and so are its sums; a sample costs two passes
// over classes, both in the first-level cache: the exponentials and their sums; then their probabilities and, in the
// same pass, the next sample's logits and the largest of them. The partition functions of kProduct samples are
// multiplied, as what they are beyond one, before a logarithm is taken.
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
#include "cpu/wide_softmax.h"
#include "dispatch.h"

namespace {

using namespace lapal_ext;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr const char* kOp = "mc_predictive";
constexpr int64_t kChunk = 16;   // samples
constexpr int64_t kProduct = 4;  // samples per logarithm: a float holds the product up to a billion classes

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

// What a block keeps between the passes of one sample and the next.
template <class T>
struct Running {
  alignas(kBlockBytes) T best[kLanes<T>];     // largest logit of the sample that is drawn
  alignas(kBlockBytes) T inverse[kLanes<T>];  // of the partition function of the sample before
  alignas(kBlockBytes) T beyond[kLanes<T>];   // product of partition functions, less one
  alignas(kBlockBytes) T energy[kLanes<T>];   // sum of the mean distances from the largest logit, <= 0
};

// Adds the probabilities of the sample in `drawn`, and draws the next one there.
template <bool kAdds, class T>
LAPAL_HD void draw_sample(const Block<T>& block, const T* noise, Running<T>& running) {
  constexpr int kL = kLanes<T>;
  alignas(kBlockBytes) T deviation[kL];
  alignas(kBlockBytes) T inverse[kL];
  alignas(kBlockBytes) T best[kL];
#pragma omp simd
  for (int lane = 0; lane < kL; ++lane) {
    deviation[lane] = block.deviation[lane];
    inverse[lane] = running.inverse[lane];
    best[lane] = -__builtin_inff();
  }
  for (int64_t k = 0; k < block.n_classes; ++k) {
    const T offset = noise[k];
    const T* logits = block.logits + k * kL;
    T* drawn = block.drawn + k * kL;
    T* sums = block.sums + k * kL;
#pragma omp simd
    for (int lane = 0; lane < kL; ++lane) {
      if (kAdds) {
        sums[lane] += drawn[lane] * inverse[lane];
      }
      const T value = logits[lane] + deviation[lane] * offset;
      drawn[lane] = value;
      best[lane] = value > best[lane] ? value : best[lane];
    }
  }
#pragma omp simd
  for (int lane = 0; lane < kL; ++lane) {
    running.best[lane] = best[lane];
  }
}

// The drawn logits become exponentials relative to the largest; of these, the sum of all but the largest, and the sum
// times the shifted logits.
template <class T>
LAPAL_HD void take_exponentials(T* drawn, int64_t n_classes, const T* largest, T* rest, T* energy) {
  constexpr int kL = kLanes<T>;
  alignas(kBlockBytes) T best[kL];
  alignas(kBlockBytes) T total[kL];
  alignas(kBlockBytes) T products[kL];
  alignas(kBlockBytes) T ties[kL];  // classes as large as the largest, beyond the first
#pragma omp simd
  for (int lane = 0; lane < kL; ++lane) {
    best[lane] = largest[lane];
    total[lane] = T(0);
    products[lane] = T(0);
    ties[lane] = T(-1);
  }
  for (int64_t k = 0; k < n_classes; ++k) {
    T* row = drawn + k * kL;
#pragma omp simd
    for (int lane = 0; lane < kL; ++lane) {
      const T shifted = row[lane] - best[lane];
      const T term = exp_nonpositive(shifted);
      const bool loses = !(shifted >= T(0));  // NaN too, so that it is seen
      row[lane] = term;
      total[lane] += loses ? term : T(0);
      ties[lane] += loses ? T(0) : T(1);
      products[lane] += term * shifted;
    }
  }
#pragma omp simd
  for (int lane = 0; lane < kL; ++lane) {
    rest[lane] = total[lane] + ties[lane];
    energy[lane] = products[lane];
  }
}

// The sample in `drawn` is weighted for its probabilities, and joins the entropy.
template <bool kWide, class T>
LAPAL_HD void take_softmax(const Block<T>& block, Running<T>& running) {
  constexpr int kL = kLanes<T>;
  alignas(kBlockBytes) T rest[kL];
  alignas(kBlockBytes) T energy[kL];
  if constexpr (kWide) {
    wide_take_exponentials(block.drawn, block.n_classes, running.best, rest, energy);
  } else {
    take_exponentials(block.drawn, block.n_classes, running.best, rest, energy);
  }
#pragma omp simd
  for (int lane = 0; lane < kL; ++lane) {
    const T inverse = T(1) / (T(1) + rest[lane]);
    running.inverse[lane] = inverse;
    running.energy[lane] += energy[lane] * inverse;
    running.beyond[lane] += rest[lane] + running.beyond[lane] * rest[lane];
  }
}

template <bool kWide, class T>
LAPAL_HD void average_samples(const Block<T>& block, int64_t n_samples) {
  constexpr int kL = kLanes<T>;
  const int64_t size = block.n_classes * kL;
  if (n_samples == 0) {
    return;
  }
  Running<T> running;
  fill_lanes(T(0), running.inverse);
  draw_sample<false>(block, block.noise, running);
  for (int64_t begin = 0; begin < n_samples; begin += kChunk) {
    const int64_t end = std::min(begin + kChunk, n_samples);
    alignas(kBlockBytes) T entropies[kL] = {};
    std::fill(block.sums, block.sums + size, T(0));
    for (int64_t first = begin; first < end; first += kProduct) {
      const int64_t last = std::min(first + kProduct, end);
      fill_lanes(T(0), running.beyond);
      fill_lanes(T(0), running.energy);
      for (int64_t s = first; s < last; ++s) {
        take_softmax<kWide>(block, running);
        const int64_t next = std::min(s + 1, n_samples - 1);  // behind the last one, drawn in vain
        draw_sample<true>(block, block.noise + next * block.n_classes, running);
      }
#pragma omp simd
      for (int lane = 0; lane < kL; ++lane) {
        entropies[lane] += log1p_nonnegative(running.beyond[lane]) - running.energy[lane];
      }
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

#if LAPAL_HAS_CLONES
LAPAL_WIDE void wide_kernel(const Block<float>& block, int64_t n_samples) {
  average_samples<true>(block, n_samples);
}
#endif

LAPAL_NARROW void narrow_kernel(const Block<float>& block, int64_t n_samples) {
  average_samples<false>(block, n_samples);
}

void mc_predictive_kernel(const Block<float>& block, int64_t n_samples) {
#if LAPAL_HAS_CLONES
  if (has_wide_registers()) {
    return wide_kernel(block, n_samples);
  }
#endif
  narrow_kernel(block, n_samples);
}

LAPAL_CLONES void mc_predictive_kernel(const Block<double>& block, int64_t n_samples) {
  average_samples<false>(block, n_samples);
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
