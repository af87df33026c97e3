// cpu/passes/samples.h for float32 with AVX-512: one pass over the classes for each sample instead of two.
//
//   x_k = (logits_k - max logits + sqrt(v) noise_k) log2(e), with the sums of cpu/avx512/softmax.h.
//
// Two samples at a time share loads, and the division of one overlaps with the arithmetic of the other. Logits are
// relative to the largest before the noise. If a sample moves the largest so far that powers would leave the range of
// float32, a second pass computes it again, relative to its own largest.
//
// Limit: 16 instructions per class of a sample.
#pragma once

#include <algorithm>

#include "cpu/avx512/softmax.h"
#include "cpu/passes/samples.h"

#if LAPAL_HAS_CLONES

namespace lapal_ext {

using SampleSums = Avx512LosingSums<Moment::energy>;

constexpr int kDrawn = 2;  // samples at a time; SampleBlock has room for them

// Adds the powers in `drawn` to the sums, then draws the next samples and stores their powers in `drawn`.
template <int kSamples>
LAPAL_AVX512 inline void avx512_draw_samples(const SampleBlock<float>& block, const float* noise, __m512 deviation,
                                             const __m512 (&weights)[kDrawn], const SampleSums::Exp2& exp2,
                                             SampleSums (&losing)[kSamples]) {
  const int64_t size = block.n_classes * kLanes<float>;
  for (int64_t k = 0; k < block.n_classes; ++k) {
    const int64_t row = k * kLanes<float>;
    __m512 sum = _mm512_load_ps(block.sums + row);
    LAPAL_UNROLL
    for (int i = 0; i < kDrawn; ++i) {
      sum = _mm512_fmadd_ps(_mm512_load_ps(block.drawn + i * size + row), weights[i], sum);
    }
    _mm512_store_ps(block.sums + row, sum);
    const __m512 logits = _mm512_load_ps(block.logits + row);
    LAPAL_UNROLL
    for (int i = 0; i < kSamples; ++i) {
      const __m512 x = _mm512_fmadd_ps(deviation, _mm512_set1_ps(noise[i * block.n_classes + k]), logits);
      const __m512 power = exp2(x);
      _mm512_store_ps(block.drawn + i * size + row, power);
      losing[i].add(x, power);
    }
  }
}

// Computes one sample again, relative to its largest logit.
LAPAL_AVX512 inline void avx512_draw_again(const SampleBlock<float>& block, const float* noise, __m512 deviation,
                                           const SampleSums::Exp2& exp2, float* drawn, SampleSums& losing) {
  const __m512 origin = losing.best();
  losing = SampleSums();
  for (int64_t k = 0; k < block.n_classes; ++k) {
    const int64_t row = k * kLanes<float>;
    const __m512 logit = _mm512_load_ps(block.logits + row);
    const __m512 x = _mm512_sub_ps(_mm512_fmadd_ps(deviation, _mm512_set1_ps(noise[k]), logit), origin);
    const __m512 power = exp2(x);
    _mm512_store_ps(drawn + row, power);
    losing.add(x, power);
  }
}

// The sums of the samples that share one logarithm.
struct Avx512Entropy {
  __m512 product_less_one;  // product of partition functions, less one
  __m512 energy;
};

// Draws samples and computes their weights.
template <int kSamples>
LAPAL_AVX512 inline void avx512_take_samples(const SampleBlock<float>& block, const float* noise, __m512 deviation,
                                             const SampleSums::Exp2& exp2, __m512 (&weights)[kDrawn],
                                             Avx512Entropy& entropy) {
  SampleSums losing[kSamples];
  avx512_draw_samples(block, noise, deviation, weights, exp2, losing);
  weights[kDrawn - 1] = _mm512_setzero_ps();  // for kSamples = 1
  LAPAL_UNROLL
  for (int i = 0; i < kSamples; ++i) {
    if (!losing[i].in_range()) {
      float* drawn = block.drawn + i * block.n_classes * kLanes<float>;
      avx512_draw_again(block, noise + i * block.n_classes, deviation, exp2, drawn, losing[i]);
    }
    const __m512 rest = losing[i].rest(losing[i].inverse());
    weights[i] = losing[i].weight();
    entropy.energy = _mm512_add_ps(entropy.energy, losing[i].second(weights[i]));
    entropy.product_less_one =
        _mm512_add_ps(entropy.product_less_one, _mm512_fmadd_ps(entropy.product_less_one, rest, rest));
  }
}

// average_samples() of a block whose logits are prepared.
LAPAL_AVX512 inline void avx512_average_samples(const SampleBlock<float>& block, int64_t n_samples) {
  constexpr int kL = kLanes<float>;
  const int64_t size = block.n_classes * kL;
  const SampleSums::Exp2 exp2;
  const __m512 deviation = _mm512_mul_ps(_mm512_load_ps(block.deviation), _mm512_set1_ps(kLog2e));
  __m512 weights[kDrawn] = {_mm512_setzero_ps(), _mm512_setzero_ps()};
  std::fill(block.drawn, block.drawn + kDrawn * size, 0.0f);
  for (int64_t begin = 0; begin < n_samples; begin += kChunk) {
    const int64_t end = std::min(begin + kChunk, n_samples);
    alignas(kBlockBytes) float entropies[kL] = {};
    std::fill(block.sums, block.sums + size, 0.0f);
    for (int64_t first = begin; first < end; first += kProduct) {
      const int64_t last = std::min(first + kProduct, end);
      Avx512Entropy entropy{_mm512_setzero_ps(), _mm512_setzero_ps()};
      int64_t s = first;
      for (; s + kDrawn <= last; s += kDrawn) {
        avx512_take_samples<kDrawn>(block, block.noise + s * block.n_classes, deviation, exp2, weights, entropy);
      }
      if (s < last) {
        avx512_take_samples<1>(block, block.noise + s * block.n_classes, deviation, exp2, weights, entropy);
      }
      alignas(kBlockBytes) float products[kL], energies[kL];
      _mm512_store_ps(products, entropy.product_less_one);
      _mm512_store_ps(energies, entropy.energy);
#pragma omp simd
      for (int lane = 0; lane < kL; ++lane) {
        entropies[lane] += log1p_nonnegative(products[lane]) - energies[lane];
      }
    }
    add_chunk(block, entropies);
  }
  for (int64_t k = 0; k < size; k += kL) {  // adds the last samples
    __m512 sum = _mm512_setzero_ps();
    LAPAL_UNROLL
    for (int i = 0; i < kDrawn; ++i) {
      sum = _mm512_fmadd_ps(_mm512_load_ps(block.drawn + i * size + k), weights[i], sum);
    }
    _mm512_store_ps(block.sums + k, sum);
  }
  alignas(kBlockBytes) const float nothing[kL] = {};
  add_chunk(block, nothing);
}

}  // namespace lapal_ext
#endif
