// The samples of mc_predictive for float32 with AVX-512: one pass over classes for each instead of two.
//
//   x_k = (logits_k - max logits + sqrt(v) noise_k) log2(e),  by the sums of wide_softmax.h.
//
// Logits are relative to the largest before noise. Where a sample moves it so far that powers would leave the range of
// float32, a second pass draws the sample again, relative to its own largest.
//
// Limit: 16 instructions per class of a sample.
#pragma once

#include <algorithm>

#include "cpu/samples.h"
#include "cpu/wide_softmax.h"

#if LAPAL_HAS_CLONES

namespace lapal_ext {

using SampleLosers = WideLosers<Moment::energy>;

// Draws a sample, and leaves its powers in `drawn`; those of the sample before first join their sums. Again: relative
// to the largest that was found, when they already have.
template <bool kAgain>
LAPAL_WIDE inline void wide_draw_sample(const SampleBlock<float>& block, const float* noise, __m512 deviation,
                                        __m512 weight, const SampleLosers::Exp2& exp2, SampleLosers& losers) {
  const __m512 origin = losers.best();
  losers = SampleLosers();
  for (int64_t k = 0; k < block.n_classes; ++k) {
    const int64_t row = k * kLanes<float>;
    if constexpr (!kAgain) {
      const __m512 before = _mm512_load_ps(block.drawn + row);
      _mm512_store_ps(block.sums + row, _mm512_fmadd_ps(before, weight, _mm512_load_ps(block.sums + row)));
    }
    __m512 x = _mm512_fmadd_ps(deviation, _mm512_set1_ps(noise[k]), _mm512_load_ps(block.logits + row));
    if constexpr (kAgain) {
      x = _mm512_sub_ps(x, origin);
    }
    const __m512 power = exp2(x);
    _mm512_store_ps(block.drawn + row, power);
    losers.meet(x, power);
  }
}

// average_samples() of a block whose logits are prepared.
LAPAL_WIDE inline void wide_average_samples(const SampleBlock<float>& block, int64_t n_samples) {
  constexpr int kL = kLanes<float>;
  const int64_t size = block.n_classes * kL;
  const SampleLosers::Exp2 exp2;
  const __m512 one = _mm512_set1_ps(1.0f);
  const __m512 deviation = _mm512_mul_ps(_mm512_load_ps(block.deviation), _mm512_set1_ps(kLog2e));
  __m512 weight = _mm512_setzero_ps();
  std::fill(block.drawn, block.drawn + size, 0.0f);
  for (int64_t begin = 0; begin < n_samples; begin += kChunk) {
    const int64_t end = std::min(begin + kChunk, n_samples);
    alignas(kBlockBytes) float entropies[kL] = {};
    std::fill(block.sums, block.sums + size, 0.0f);
    for (int64_t first = begin; first < end; first += kProduct) {
      const int64_t last = std::min(first + kProduct, end);
      __m512 beyond = _mm512_setzero_ps(), energy = _mm512_setzero_ps();
      for (int64_t s = first; s < last; ++s) {
        const float* noise = block.noise + s * block.n_classes;
        SampleLosers losers;
        wide_draw_sample<false>(block, noise, deviation, weight, exp2, losers);
        if (!losers.in_range()) {
          wide_draw_sample<true>(block, noise, deviation, weight, exp2, losers);
        }
        const __m512 inverse = losers.inverse(), rest = losers.rest(inverse);
        const __m512 share = _mm512_div_ps(one, _mm512_add_ps(one, rest));
        weight = _mm512_mul_ps(inverse, share);
        energy = _mm512_fmadd_ps(losers.second(inverse), share, energy);
        beyond = _mm512_add_ps(beyond, _mm512_fmadd_ps(beyond, rest, rest));
      }
      alignas(kBlockBytes) float products[kL], energies[kL];
      _mm512_store_ps(products, beyond);
      _mm512_store_ps(energies, energy);
#pragma omp simd
      for (int lane = 0; lane < kL; ++lane) {
        entropies[lane] += log1p_nonnegative(products[lane]) - energies[lane];
      }
    }
    add_chunk(block, entropies);
  }
  for (int64_t k = 0; k < size; k += kL) {  // what the last sample left
    _mm512_store_ps(block.sums + k, _mm512_mul_ps(_mm512_load_ps(block.drawn + k), weight));
  }
  alignas(kBlockBytes) const float nothing[kL] = {};
  add_chunk(block, nothing);
}

}  // namespace lapal_ext
#endif
