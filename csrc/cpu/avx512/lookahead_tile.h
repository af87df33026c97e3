// cpu/passes/lookahead_tile.h for float32 with AVX-512: one pass over the classes computes the logits after a
// hypothesis and the sums of their softmax.
//
//   x_k = (logits_k - max logits + sum_t columns_t H_tk) log2(e)
//
// The sums are those of cpu/avx512/softmax.h; the loss decides which of them are needed.
//
// Two blocks of points share every factor: a multiply-add that loads its factor from memory takes half as long again.
// The logits of a group of classes are accumulated in registers and added to the sums from there; the multiply-adds of
// the next group overlap with that. Logits are relative to the largest before the hypothesis. If a hypothesis moves the
// largest so far that powers would leave the range of float32, a second pass over the moved logits is relative to the
// new largest.
//
// Limit: b multiply-adds and 12 to 14 other instructions per class of a block.
#pragma once

#include <algorithm>

#include "cpu/avx512/softmax.h"
#include "cpu/passes/lookahead_tile.h"
#include "cpu/simd/lanes.h"

#if LAPAL_HAS_CLONES

namespace lapal_ext {

// Neighbouring blocks of points, and one hypothesis.
struct Avx512Blocks {
  const float* logits;        // [block][C][lane]
  const float* columns;       // of the first point
  const float* link;          // [block][lane], null for the plugin link
  const int64_t* slots;       // [b]
  const float* coefficients;  // [b, C]
  int64_t batch_size;
  int64_t n_classes;
  float* moved;  // [block][C][lane]
};

// The results for these blocks.
struct Avx512Results {
  float* best;     // [block][lane]
  float* rest;     // as best
  float* moments;  // as best
};

// Classes [first, first + kClasses).
template <int kBlocks, int kClasses, Moment moment>
LAPAL_AVX512_INLINED void avx512_move_group(const Avx512Blocks& blocks, int64_t first,
                                            const typename Avx512LosingSums<moment>::Exp2& exp2,
                                            Avx512LosingSums<moment> (&losing)[kBlocks]) {
  constexpr int kL = kLanes<float>;
  const int64_t block_size = blocks.n_classes * kL;
  __m512 x[kBlocks][kClasses];
  LAPAL_UNROLL
  for (int block = 0; block < kBlocks; ++block) {
    LAPAL_UNROLL
    for (int k = 0; k < kClasses; ++k) {
      x[block][k] = _mm512_load_ps(blocks.logits + block * block_size + (first + k) * kL);
    }
  }
  for (int64_t t = 0; t < blocks.batch_size; ++t) {
    const float* columns = blocks.columns + blocks.slots[t];
    const float* weights = blocks.coefficients + t * blocks.n_classes + first;
    __m512 column[kBlocks];
    LAPAL_UNROLL
    for (int block = 0; block < kBlocks; ++block) {
      column[block] = _mm512_loadu_ps(columns + block * kL);
    }
    LAPAL_UNROLL
    for (int k = 0; k < kClasses; ++k) {
      const __m512 weight = _mm512_set1_ps(weights[k]);
      LAPAL_UNROLL
      for (int block = 0; block < kBlocks; ++block) {
        x[block][k] = _mm512_fmadd_ps(column[block], weight, x[block][k]);
      }
    }
  }
  LAPAL_UNROLL
  for (int block = 0; block < kBlocks; ++block) {
    if (blocks.link != nullptr) {
      const __m512 link = _mm512_load_ps(blocks.link + block * kL);
      LAPAL_UNROLL
      for (int k = 0; k < kClasses; ++k) {
        x[block][k] = _mm512_mul_ps(x[block][k], link);
      }
    }
    float* moved = blocks.moved + block * block_size + first * kL;
    LAPAL_UNROLL
    for (int k = 0; k < kClasses; ++k) {
      _mm512_store_ps(moved + k * kL, x[block][k]);
      losing[block].add(x[block][k], exp2(x[block][k]));
    }
  }
}

// A group of `size` <= kClasses classes.
template <int kBlocks, int kClasses, Moment moment>
LAPAL_AVX512_INLINED void avx512_move_some(const Avx512Blocks& blocks, int64_t first, int64_t size,
                                           const typename Avx512LosingSums<moment>::Exp2& exp2,
                                           Avx512LosingSums<moment> (&losing)[kBlocks]) {
  if constexpr (kClasses > 1) {
    if (size < kClasses) {
      return avx512_move_some<kBlocks, kClasses - 1>(blocks, first, size, exp2, losing);
    }
  }
  avx512_move_group<kBlocks, kClasses>(blocks, first, exp2, losing);
}

// All classes of kBlocks blocks.
template <int kBlocks, Moment moment>
LAPAL_AVX512 inline void avx512_take_blocks(const Avx512Blocks& blocks, const Avx512Results& results) {
  constexpr int kL = kLanes<float>;
  const typename Avx512LosingSums<moment>::Exp2 exp2;
  Avx512LosingSums<moment> losing[kBlocks];
  const int64_t n_groups = (blocks.n_classes + kGroup - 1) / kGroup;
  const int64_t small = blocks.n_classes / n_groups, n_large = blocks.n_classes % n_groups;
  int64_t first = 0;
  for (int64_t group = 0; group < n_groups; ++group) {
    const int64_t size = small + (group < n_large);
    avx512_move_some<kBlocks, kGroup>(blocks, first, size, exp2, losing);
    first += size;
  }
  for (int block = 0; block < kBlocks; ++block) {
    if (!losing[block].in_range()) {
      const __m512 best = losing[block].best();
      losing[block] = Avx512LosingSums<moment>();
      float* moved = blocks.moved + block * blocks.n_classes * kL;
      for (int64_t k = 0; k < blocks.n_classes; ++k) {
        const __m512 x = _mm512_sub_ps(_mm512_load_ps(moved + k * kL), best);
        _mm512_store_ps(moved + k * kL, x);
        losing[block].add(x, exp2(x));
      }
    }
    _mm512_store_ps(results.best + block * kL, losing[block].best());
    const __m512 inverse = losing[block].inverse();
    _mm512_store_ps(results.rest + block * kL, losing[block].rest(inverse));
    _mm512_store_ps(results.moments + block * kL, losing[block].second(inverse));
  }
}

template <int kBlocks>
LAPAL_AVX512 inline void avx512_take_blocks_for_loss(Loss kind, const Avx512Blocks& blocks,
                                                     const Avx512Results& results) {
  switch (kind) {
    case Loss::expected_cross_entropy:
      return avx512_take_blocks<kBlocks, needs_of(Loss::expected_cross_entropy).moment>(blocks, results);
    case Loss::brier:
      return avx512_take_blocks<kBlocks, needs_of(Loss::brier).moment>(blocks, results);
    case Loss::cross_entropy:
      return avx512_take_blocks<kBlocks, needs_of(Loss::cross_entropy).moment>(blocks, results);
    case Loss::expected_zero_one:
      return avx512_take_blocks<kBlocks, needs_of(Loss::expected_zero_one).moment>(blocks, results);
    case Loss::zero_one:
      return;  // needs no sums
  }
}

// Losses of hypotheses [begin, end), summed over the points of a tile.
LAPAL_AVX512 inline void avx512_lookahead_tile(const LookaheadTile<float>& tile, int64_t begin, int64_t end,
                                               double* sums) {
  constexpr int kL = kLanes<float>;
  const int64_t b = tile.batch_size, n_classes = tile.n_classes;
  float* z = tile.buffer + kBlocksAtOnce * n_classes * kL;
  float* coefficients = z + b * kL;
  Softmaxes<float> softmaxes;
  alignas(kBlockBytes) float best[kBlocksAtOnce * kL];
  alignas(kBlockBytes) float link[kBlocksAtOnce * kL];
  alignas(kBlockBytes) float unit[kL];
  fill_lanes(kLog2, unit);
  Avx512Blocks blocks{};
  blocks.link = tile.variance == nullptr ? nullptr : link;
  blocks.coefficients = coefficients;
  blocks.batch_size = b;
  blocks.n_classes = n_classes;
  blocks.moved = tile.buffer;
  for (int64_t start = 0; start < tile.points; start += kL) {
    avx512_prepare_logits(n_classes, kLog2e, tile.logits + start * n_classes);
  }
  for (int64_t m = begin; m < end; ++m) {
    blocks.slots = tile.slots + m * b;
    const int64_t* next_slots = m + 1 < end ? blocks.slots + b : blocks.slots;
    const float* given = tile.coefficients + m * b * n_classes;
#pragma omp simd
    for (int64_t i = 0; i < b * n_classes; ++i) {
      coefficients[i] = given[i] * kLog2e;
    }
    for (int64_t start = 0; start < tile.points; start += kBlocksAtOnce * kL) {
      const int64_t n_blocks = std::min<int64_t>(kBlocksAtOnce, (tile.points - start + kL - 1) / kL);
      blocks.logits = tile.logits + start * n_classes;
      blocks.columns = tile.columns + start;
      for (int64_t t = 0; t < b; ++t) {
        __builtin_prefetch(blocks.columns + next_slots[t]);
        __builtin_prefetch(blocks.columns + next_slots[t] + (n_blocks - 1) * kL);
      }
      if (blocks.link != nullptr) {
        for (int64_t block = 0; block < n_blocks; ++block) {
          link_block(tile, blocks.columns + block * kL, blocks.slots, tile.triangle + m * b * b, tile.beta + m * b,
                     tile.variance + start + block * kL, z, link + block * kL);
        }
      }
      const Avx512Results results{best, softmaxes.rest + start, softmaxes.moments + start};
      if (!needs_of(tile.kind).sums) {
        for (int64_t block = 0; block < n_blocks; ++block) {
          move_block(tile, blocks.logits + block * n_classes * kL, blocks.columns + block * kL, blocks.slots,
                     coefficients, blocks.moved + block * n_classes * kL, best + block * kL);
        }
      } else if (n_blocks == kBlocksAtOnce) {
        avx512_take_blocks_for_loss<kBlocksAtOnce>(tile.kind, blocks, results);
      } else {
        avx512_take_blocks_for_loss<1>(tile.kind, blocks, results);
      }
      for (int64_t block = 0; block < n_blocks; ++block) {
        take_labels(tile, blocks.moved + block * n_classes * kL, best + block * kL, unit, start + block * kL,
                    softmaxes);
      }
    }
    sums[m] = sum_losses_of_kind(tile, softmaxes);
  }
}

}  // namespace lapal_ext
#endif
