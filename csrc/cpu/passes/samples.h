// The passes of mc_predictive over one block of rows, with rows in lanes: class-major, [C][lane].
#pragma once

#include <algorithm>

#include "cpu/simd/lanes.h"
#include "shared/exponential.h"

namespace lapal_ext {

constexpr int64_t kChunk = 16;   // samples
constexpr int64_t kProduct = 4;  // samples per logarithm: for up to a billion classes, the product fits in a float

// One block of rows, class-major.
template <class T>
struct SampleBlock {
  T* logits;           // [C][lane]
  const T* deviation;  // [lane]
  const T* noise;      // [S, C]
  int64_t n_classes;
  T* sums;          // [C][lane] of one chunk
  T* drawn;         // [C][lane] of one sample, with room for another
  double* mean;     // [C][lane]
  double* entropy;  // [lane]
};

// The state of a block between two passes.
template <class T>
struct Running {
  alignas(kBlockBytes) T best[kLanes<T>];              // largest logit of the present sample
  alignas(kBlockBytes) T inverse[kLanes<T>];           // one over the partition function of the previous sample
  alignas(kBlockBytes) T product_less_one[kLanes<T>];  // product of partition functions, less one
  alignas(kBlockBytes) T energy[kLanes<T>];            // sum of the mean distances from the largest logit, <= 0
};

// Adds the probabilities of the sample in `drawn`, and replaces it by the next sample.
template <bool kAdds, class T>
LAPAL_HD void draw_sample(const SampleBlock<T>& block, const T* noise, Running<T>& running) {
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

// Replaces the drawn logits by exponentials relative to the largest. `rest` is the sum of all but the largest, `energy`
// the sum of exponential times shifted logit.
template <class T>
LAPAL_HD void take_exponentials(T* drawn, int64_t n_classes, const T* largest, T* rest, T* energy) {
  constexpr int kL = kLanes<T>;
  alignas(kBlockBytes) T best[kL];
  alignas(kBlockBytes) T total[kL];
  alignas(kBlockBytes) T products[kL];
  alignas(kBlockBytes) T ties[kL];  // classes as large as the largest, product_less_one the first
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
      const bool loses = !(shifted >= T(0));  // a NaN is in the sum
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

// Computes the weight that turns the exponentials in `drawn` into probabilities, and adds the sample to the entropy.
template <class T>
LAPAL_HD void take_softmax(const SampleBlock<T>& block, Running<T>& running) {
  constexpr int kL = kLanes<T>;
  alignas(kBlockBytes) T rest[kL];
  alignas(kBlockBytes) T energy[kL];
  take_exponentials(block.drawn, block.n_classes, running.best, rest, energy);
#pragma omp simd
  for (int lane = 0; lane < kL; ++lane) {
    const T inverse = T(1) / (T(1) + rest[lane]);
    running.inverse[lane] = inverse;
    running.energy[lane] += energy[lane] * inverse;
    running.product_less_one[lane] += rest[lane] + running.product_less_one[lane] * rest[lane];
  }
}

// Adds the sums of a chunk of samples to those of the call.
template <class T>
LAPAL_HD void add_chunk(const SampleBlock<T>& block, const T* entropies) {
#pragma omp simd
  for (int64_t i = 0; i < block.n_classes * kLanes<T>; ++i) {
    block.mean[i] += double(block.sums[i]);
  }
#pragma omp simd
  for (int lane = 0; lane < kLanes<T>; ++lane) {
    block.entropy[lane] += double(entropies[lane]);
  }
}

// Sums over samples of the probabilities and the entropies of a block.
template <class T>
LAPAL_HD void average_samples(const SampleBlock<T>& block, int64_t n_samples) {
  constexpr int kL = kLanes<T>;
  if (n_samples == 0) {
    return;
  }
  Running<T> running;
  fill_lanes(T(0), running.inverse);
  draw_sample<false>(block, block.noise, running);
  for (int64_t begin = 0; begin < n_samples; begin += kChunk) {
    const int64_t end = std::min(begin + kChunk, n_samples);
    alignas(kBlockBytes) T entropies[kL] = {};
    std::fill(block.sums, block.sums + block.n_classes * kL, T(0));
    for (int64_t first = begin; first < end; first += kProduct) {
      const int64_t last = std::min(first + kProduct, end);
      fill_lanes(T(0), running.product_less_one);
      fill_lanes(T(0), running.energy);
      for (int64_t s = first; s < last; ++s) {
        take_softmax(block, running);
        const int64_t next =
            std::min(s + 1, n_samples - 1);  // after the last sample, it is drawn once more and not used
        draw_sample<true>(block, block.noise + next * block.n_classes, running);
      }
#pragma omp simd
      for (int lane = 0; lane < kL; ++lane) {
        entropies[lane] += log1p_nonnegative(running.product_less_one[lane]) - running.energy[lane];
      }
    }
    add_chunk(block, entropies);
  }
}

}  // namespace lapal_ext
