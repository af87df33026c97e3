// Expected loss after one more label, for every candidate, over all labels that it may have.
//
//   out_n = sum over e and k of p_nk loss(softmax(z_e + delta (e_k - p_n))),  delta = a_n c_ne.
//
// Shapes: logits z [C, E], columns c [N, E], step lengths a [N], probabilities p [N, C] -> float64 [N].
//
// All labels of a candidate share t = z - delta p; label k adds delta to class k only. So a (candidate, point) takes
// three passes over the classes instead of C softmaxes:
//
// 1. Find the two largest of t.
// 2. Compute the C exponentials relative to the second largest, and their sum.
// 3. For each label k, replace the exponential of class k in the sum by exp(t_k + delta) (shared/single_logit_shift.h).
//    This is the exponential of pass 2 times exp(delta). In a block where delta is too large for that, it is an
//    exponential of its own.
//
// The winner of t is the only class whose removal changes the largest logit, so its label is computed separately. For
// the error, float32 with AVX-512 needs one pass for the first two (cpu/avx512/hypothetical_labels.h).
//
// Layout: evaluation points are in lanes. The logits of a tile of points are packed as [block][C][lane] and stay in the
// second-level cache for all candidates. Columns are read in place.
//
// Parallel over pairs (tile, candidate), see cpu/passes/evaluation_tiles.h. The losses of at most kChunk labels are
// added in the dtype of the inputs, and these sums in float64.
//
// Limit: arithmetic. Per (candidate, point, class) about 5 operations for the two largest, 20 for the exponential, and
// 10 for the error or 40 for the entropy. The error needs half a division, the entropy one.
#include "torch/arguments/expected_lookahead.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <string>

#include "cpu/avx512/hypothetical_labels.h"
#include "cpu/passes/evaluation_tiles.h"
#include "cpu/passes/hypothetical_labels.h"
#include "cpu/simd/lanes.h"
#include "cpu/simd/scratch.h"
#include "shared/losses.h"
#include "shared/single_logit_shift.h"
#include "torch/dispatch.h"

namespace {

using namespace lapal_ext;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr int64_t kTileBytes = 1 << 18;  // of logits: an eighth of a large second-level cache, a quarter of a small one
constexpr int64_t kChunk = 32;           // labels, a multiple of two

// One tile of points, and the data of the candidates, which is the same for all tiles.
template <class T>
struct Tile {
  int64_t points;
  T* logits;         // [block][C][lane]
  const T* columns;  // [N, points], rows `column_stride` apart
  int64_t column_stride;
  const T* step_lengths;   // [N]
  const T* probabilities;  // [N, C]
  int64_t n_classes;
  Loss kind;
  T* shifted;  // [C][lane]
  T* weights;  // [C][lane]
};

// Expected loss of each point of a block, added to `totals`.
template <bool kAvx512, Loss kind, class T>
LAPAL_HD void expected_loss_block(const Tile<T>& tile, const T* logits, const T* p, Softmax<T>& softmax,
                                  double* totals) {
  constexpr int kL = kLanes<T>;
  if constexpr (kAvx512 && kind == Loss::expected_zero_one) {
    if (avx512_add_expected_error(logits, p, tile.n_classes, kChunk, softmax.delta, tile.weights, totals)) {
      return;
    }
  }
  find_top_two(logits, p, tile.n_classes, tile.shifted, softmax);
  if constexpr (kAvx512) {
    avx512_sum_weights(p, tile.n_classes, tile.shifted, tile.weights, softmax);
  } else {
    sum_weights(p, tile.n_classes, tile.shifted, tile.weights, softmax);
  }
  SharedSums<T> shared;
  shared.take(softmax);
  int too_large = 0;
#pragma omp simd reduction(+ : too_large)
  for (int lane = 0; lane < kL; ++lane) {
    too_large += softmax.delta[lane] > T(kMaxFactorShift);
  }
  alignas(kBlockBytes) T sums[kL];
  for (int64_t begin = 0; begin < tile.n_classes; begin += kChunk) {
    const int64_t end = begin + kChunk < tile.n_classes ? begin + kChunk : tile.n_classes;
    if (too_large == 0) {
      add_labels<kind>(p, begin, end, tile.shifted, tile.weights, shared, sums);
    } else {
      add_labels_of_any_shift<kind>(logits, p, begin, end, tile.shifted, tile.weights, softmax, shared, sums);
    }
#pragma omp simd
    for (int lane = 0; lane < kL; ++lane) {
      totals[lane] += double(sums[lane]);
    }
  }
#pragma omp simd
  for (int lane = 0; lane < kL; ++lane) {
    const T d = shared.gap[lane] + softmax.delta[lane];
    sums[lane] = softmax.p_winner[lane] * shifted_loss<kind>(softmax.rest[lane], softmax.energy[lane], d);
  }
#pragma omp simd
  for (int lane = 0; lane < kL; ++lane) {
    totals[lane] += double(sums[lane]);
  }
}

template <bool kAvx512, Loss kind, class T>
LAPAL_HD double sum_tile(const Tile<T>& tile, int64_t n) {
  constexpr int kL = kLanes<T>;
  const T* p = tile.probabilities + n * tile.n_classes;
  const T* columns = tile.columns + n * tile.column_stride;
  const T length = tile.step_lengths[n];
  alignas(kBlockBytes) double totals[kL] = {};
  Softmax<T> softmax;
  int64_t start = 0;
  for (; start + kL <= tile.points; start += kL) {
#pragma omp simd
    for (int lane = 0; lane < kL; ++lane) {
      softmax.delta[lane] = length * columns[start + lane];
    }
    expected_loss_block<kAvx512, kind>(tile, tile.logits + start * tile.n_classes, p, softmax, totals);
  }
  double sum = 0.0;
  if (start < tile.points) {
    alignas(kBlockBytes) double last[kL] = {};
    for (int lane = 0; lane < kL; ++lane) {
      softmax.delta[lane] = start + lane < tile.points ? length * columns[start + lane] : T(0);
    }
    expected_loss_block<kAvx512, kind>(tile, tile.logits + start * tile.n_classes, p, softmax, last);
    for (int lane = 0; start + lane < tile.points; ++lane) {
      sum += last[lane];
    }
  }
  for (int lane = 0; lane < kL; ++lane) {
    sum += totals[lane];
  }
  return sum;
}

template <bool kAvx512, class T>
LAPAL_HD void expected_lookahead_tile(const Tile<T>& tile, int64_t begin, int64_t end, double* sums) {
  for (int64_t n = begin; n < end; ++n) {
    switch (tile.kind) {
      case Loss::expected_zero_one:
        sums[n] = sum_tile<kAvx512, Loss::expected_zero_one>(tile, n);
        break;
      case Loss::expected_cross_entropy:
        sums[n] = sum_tile<kAvx512, Loss::expected_cross_entropy>(tile, n);
        break;
      case Loss::cross_entropy:
      case Loss::zero_one:
      case Loss::brier:
        break;  // they need targets: the check of the arguments refuses them
    }
  }
}

#if LAPAL_HAS_CLONES
LAPAL_AVX512 void avx512_kernel(const Tile<float>& tile, int64_t begin, int64_t end, double* sums) {
  for (int64_t start = 0; start < tile.points; start += kLanes<float>) {
    avx512_prepare_logits(tile.n_classes, 1.0f, tile.logits + start * tile.n_classes);
  }
  expected_lookahead_tile<true>(tile, begin, end, sums);
}
#endif

LAPAL_NOT_AVX512 void portable_kernel(const Tile<float>& tile, int64_t begin, int64_t end, double* sums) {
  expected_lookahead_tile<false>(tile, begin, end, sums);
}

void expected_lookahead_kernel(const Tile<float>& tile, int64_t begin, int64_t end, double* sums) {
#if LAPAL_HAS_CLONES
  if (has_avx512()) {
    return avx512_kernel(tile, begin, end, sums);
  }
#endif
  portable_kernel(tile, begin, end, sums);
}

LAPAL_CLONES void expected_lookahead_kernel(const Tile<double>& tile, int64_t begin, int64_t end, double* sums) {
  expected_lookahead_tile<false>(tile, begin, end, sums);
}

// Memory of one worker.
template <class T>
struct Worker {
  Worker(const Tensor& logits, const Tensor& columns, const Tile<T>& common, int64_t tile_points)
      : logits(logits),
        columns(columns),
        common(common),
        packed(common.n_classes * round_up(tile_points, kLanes<T>)),
        shifted(common.n_classes * kLanes<T>),
        weights(common.n_classes * kLanes<T>) {}

  explicit operator bool() const {
    return packed && shifted && weights;
  }

  void sum_tile(int64_t start, int64_t points, int64_t begin, int64_t end, double* sums) const {
    pack_logits(logits, start, points, packed.data());
    Tile<T> tile = common;
    tile.points = points;
    tile.logits = packed.data();
    tile.columns = columns.const_data_ptr<T>() + start;
    tile.column_stride = columns.stride(0);
    tile.shifted = shifted.data();
    tile.weights = weights.data();
    expected_lookahead_kernel(tile, begin, end, sums);
  }

 private:
  const Tensor& logits;
  const Tensor& columns;  // points contiguous
  const Tile<T>& common;
  Scratch<T> packed, shifted, weights;
};

Tensor expected_lookahead_cpu(const Tensor& logits, const Tensor& columns, const Tensor& step_lengths,
                              const Tensor& probabilities, const std::string& loss_kind) {
  const ExpectedLookaheadArguments call =
      check_expected_lookahead(logits, columns, step_lengths, probabilities, loss_kind);
  const int64_t n_classes = call.n_classes, n_eval = call.n_eval, n_candidates = call.n_candidates;

  Tensor sums = torch::stable::new_zeros(logits, {n_candidates}, ScalarType::Double);
  if (n_candidates == 0 || n_eval == 0 || n_classes == 1) {  // a single class is certain
    return sums;
  }
  const Tensor dense_columns = n_eval == 1 || columns.stride(1) == 1 ? columns : torch::stable::contiguous(columns);
  const Tensor dense_lengths = torch::stable::contiguous(step_lengths);
  const Tensor dense_probabilities = torch::stable::contiguous(probabilities);
  dispatch_floating(call.dtype, kOp, [&](auto tag) {
    using scalar_t = typename decltype(tag)::type;
    Tile<scalar_t> common{};
    common.step_lengths = dense_lengths.const_data_ptr<scalar_t>();
    common.probabilities = dense_probabilities.const_data_ptr<scalar_t>();
    common.n_classes = n_classes;
    common.kind = call.kind;
    const Tiling tiling = tiling_of<scalar_t>(n_eval, n_classes, kTileBytes);
    const auto make_worker = [&] { return Worker<scalar_t>(logits, dense_columns, common, tiling.tile_points); };
    sum_over_tiles<scalar_t>(tiling, n_candidates, kOp, make_worker, sums.mutable_data_ptr<double>());
  });
  return sums;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(lapal_ext, CPU, m) {
  m.impl("expected_lookahead", TORCH_BOX(&expected_lookahead_cpu));
}
