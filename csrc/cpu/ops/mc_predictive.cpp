// Monte Carlo predictive and its mean entropy, streamed over the samples.
//
//   mean_n = 1/S sum_s softmax(z_n + sqrt(v_n) noise_s),  entropy_n = 1/S sum_s entropy(softmax(z_n + sqrt(v_n)
//   noise_s))
//
// Shapes: logits z [N, C], variance v [N], noise [S, C] -> mean [N, C], entropy [N].
//
// Layout: rows are in lanes. The logits of a block and their sums are packed as [C][lane]. A sample takes two passes
// over the classes, both in the first-level cache. The first computes the exponentials and their sums. The second adds
// the probabilities and also draws the logits of the next sample (cpu/passes/samples.h). Float32 with AVX-512 needs one
// pass for both (cpu/avx512/samples.h). One logarithm serves kProduct samples: it is taken of the product of their
// partition functions.
//
// The probabilities of at most kChunk samples are added in the dtype of the inputs, and these sums in float64, so the
// error does not grow with S.
//
// Parallel over blocks of rows. The sums of each lane have one order, so equal rows have equal results.
//
// Limit: arithmetic. One exponential per (row, sample, class) and about 10 other operations.
#include "torch/arguments/mc_predictive.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <tuple>

#include "cpu/avx512/samples.h"
#include "cpu/passes/row_block.h"
#include "cpu/passes/samples.h"
#include "cpu/simd/lanes.h"
#include "cpu/simd/scratch.h"
#include "shared/numbers.h"
#include "torch/dispatch.h"
#include "torch/parallel_tiles.h"
#include "torch/rows.h"

namespace {

using namespace lapal_ext;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

#if LAPAL_HAS_CLONES
LAPAL_AVX512 void avx512_kernel(const SampleBlock<float>& block, int64_t n_samples) {
  avx512_prepare_logits(block.n_classes, kLog2e, block.logits);
  avx512_average_samples(block, n_samples);
}
#endif

LAPAL_NOT_AVX512 void portable_kernel(const SampleBlock<float>& block, int64_t n_samples) {
  average_samples(block, n_samples);
}

void mc_predictive_kernel(const SampleBlock<float>& block, int64_t n_samples) {
#if LAPAL_HAS_CLONES
  if (has_avx512()) {
    return avx512_kernel(block, n_samples);
  }
#endif
  portable_kernel(block, n_samples);
}

LAPAL_CLONES void mc_predictive_kernel(const SampleBlock<double>& block, int64_t n_samples) {
  average_samples(block, n_samples);
}

// The tensors of a call. Noise is contiguous; the others have any strides.
struct Inputs {
  const Tensor& logits;
  const Tensor& variance;
  const Tensor& noise;
};

// Memory of one worker for blocks of `block_size` logits: the logits, their sums, and two samples of them.
template <class T>
struct Memory {
  explicit Memory(int64_t block_size) : values(4 * block_size), means(block_size) {}
  explicit operator bool() const {
    return values && means;
  }

  Scratch<T> values;
  Scratch<double> means;
};

template <class T>
void mc_predictive_impl(const Inputs& inputs, T* mean, T* entropy) {
  constexpr int kL = kLanes<T>;
  const int64_t n_rows = inputs.logits.size(0), n_classes = inputs.logits.size(1), n_samples = inputs.noise.size(0);
  const LogitRows<T> logits = rows_of_logits<T>(inputs.logits);
  const T* variance = inputs.variance.const_data_ptr<T>();
  const int64_t variance_stride = inputs.variance.stride(0);
  const int64_t n_blocks = (n_rows + kL - 1) / kL;
  const auto make_memory = [&] { return Memory<T>(n_classes * kL); };
  parallel_tiles(n_blocks, 1, kOp, make_memory, [&](int64_t begin, int64_t end, const Memory<T>& memory) {
    T* packed = memory.values.data();
    alignas(kBlockBytes) T deviation[kL];
    alignas(kBlockBytes) double entropies[kL];
    SampleBlock<T> block{};
    block.logits = packed;
    block.deviation = deviation;
    block.noise = inputs.noise.const_data_ptr<T>();
    block.n_classes = n_classes;
    block.sums = packed + n_classes * kL;
    block.drawn = packed + 2 * n_classes * kL;
    block.mean = memory.means.data();
    block.entropy = entropies;
    for (int64_t index = begin; index < end; ++index) {
      const int64_t start = index * kL, valid = std::min<int64_t>(kL, n_rows - start);
      read_rows(logits, start, valid, packed);
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
}

std::tuple<Tensor, Tensor> mc_predictive_cpu(const Tensor& logits, const Tensor& variance, const Tensor& noise) {
  const McPredictiveArguments call = check_mc_predictive(logits, variance, noise);
  const int64_t n_rows = call.n_rows, n_classes = call.n_classes;

  Tensor mean = torch::stable::new_empty(logits, {n_rows, n_classes});
  Tensor entropy = torch::stable::new_empty(logits, {n_rows});
  if (n_rows == 0) {
    return {mean, entropy};
  }
  const Tensor dense_noise = torch::stable::contiguous(noise);
  const Inputs inputs{logits, variance, dense_noise};
  dispatch_floating(call.dtype, kOp, [&](auto tag) {
    using scalar_t = typename decltype(tag)::type;
    mc_predictive_impl(inputs, mean.mutable_data_ptr<scalar_t>(), entropy.mutable_data_ptr<scalar_t>());
  });
  return {mean, entropy};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(lapal_ext, CPU, m) {
  m.impl("mc_predictive", TORCH_BOX(&mc_predictive_cpu));
}
