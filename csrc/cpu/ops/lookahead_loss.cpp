// Loss after each of M hypothetical batches, summed over E evaluation points.
//
//   logits'(e) = logits(e) + c_e^T H,  c_e = columns[batch, e]
//
// The loss is that of softmax(logits'). With the mean-field link it is that of softmax(logits' / sqrt(1 + kappa v')),
// where v' = v - sum_t beta_t z_t^2 and T z = c_e.
//
// Shapes: logits [C, E], columns [N, E], batches [M, b], H [M, b, C], T [M, b, b], beta [M, b], v [E], targets [E]
// -> float64 [M].
//
// Layout: evaluation points are in lanes. Columns are read in place: each is used a few times, and a copy would cost
// more. The logits of a tile of points are packed as [block][C][lane]. A tile is small enough for its columns to stay
// in the second-level cache for all hypotheses. The points after the last full block are a tile of their own, with
// packed columns.
//
// In a block, the logits of a group of classes are accumulated in registers over the b columns and stored in a buffer
// [C][lane]. Two passes over this buffer compute the sums of the softmax; float32 with AVX-512 needs one pass
// (cpu/avx512/lookahead_tile.h). The sums of all points are kept until the tile is complete, and the losses are
// computed from them at the end: many independent logarithms run at full throughput.
//
// Parallel over pairs (tile, hypothesis), see cpu/passes/evaluation_tiles.h.
//
// Limit: arithmetic. Per (hypothesis, point, class) b multiply-adds and 12 to 20 operations of the softmax.
#include "torch/arguments/lookahead_loss.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <optional>
#include <string>
#include <vector>

#include "cpu/avx512/lookahead_tile.h"
#include "cpu/passes/evaluation_tiles.h"
#include "cpu/passes/lookahead_tile.h"
#include "cpu/simd/lanes.h"
#include "cpu/simd/scratch.h"
#include "torch/dispatch.h"

namespace {

using namespace lapal_ext;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr int64_t kTileBytes = 1 << 20;  // of columns and logits: half of a common second-level cache

template <class T>
LAPAL_HD void lookahead_loss_tile(const LookaheadTile<T>& tile, int64_t begin, int64_t end, double* sums) {
  constexpr int kL = kLanes<T>;
  const int64_t b = tile.batch_size;
  T* moved = tile.buffer;
  T* z = moved + tile.n_classes * kL;
  Softmaxes<T> softmaxes;
  alignas(kBlockBytes) T link[kL];
  fill_lanes(T(1), link);
  for (int64_t m = begin; m < end; ++m) {
    const int64_t* slots = tile.slots + m * b;
    // The columns of a hypothesis are on b pages. Those of the next hypothesis are prefetched here.
    const int64_t* next_slots = m + 1 < end ? slots + b : slots;
    const T* coefficients = tile.coefficients + m * b * tile.n_classes;
    for (int64_t start = 0; start < tile.points; start += kL) {
      alignas(kBlockBytes) T best[kL];
      for (int64_t t = 0; t < b; ++t) {
        __builtin_prefetch(tile.columns + start + next_slots[t]);
      }
      move_block(tile, tile.logits + start * tile.n_classes, tile.columns + start, slots, coefficients, moved, best);
      if (tile.variance != nullptr) {
        link_block(tile, tile.columns + start, slots, tile.triangle + m * b * b, tile.beta + m * b,
                   tile.variance + start, z, link);
        softmax_block_for_loss<true>(tile, moved, best, link, start, softmaxes);
      } else {
        softmax_block_for_loss<false>(tile, moved, best, link, start, softmaxes);
      }
      take_labels(tile, moved, best, link, start, softmaxes);
    }
    sums[m] = sum_losses_of_kind(tile, softmaxes);
  }
}

LAPAL_NOT_AVX512 void portable_kernel(const LookaheadTile<float>& tile, int64_t begin, int64_t end, double* sums) {
  lookahead_loss_tile(tile, begin, end, sums);
}

void lookahead_loss_kernel(const LookaheadTile<float>& tile, int64_t begin, int64_t end, double* sums) {
#if LAPAL_HAS_CLONES
  if (has_avx512()) {
    return avx512_lookahead_tile(tile, begin, end, sums);
  }
#endif
  portable_kernel(tile, begin, end, sums);
}

LAPAL_CLONES void lookahead_loss_kernel(const LookaheadTile<double>& tile, int64_t begin, int64_t end, double* sums) {
  lookahead_loss_tile(tile, begin, end, sums);
}

// Offsets of the columns of every hypothesis: in `columns`, and in the packed columns of the last tile. The packed
// columns hold only the rows that occur in a batch, in the order of their first use.
struct Slots {
  std::vector<int64_t> in_place, packed, rows;
};

Slots find_slots(const int64_t* batches, int64_t count, int64_t n_rows, int64_t row_stride, int64_t packed_stride) {
  Slots slots;
  std::vector<int64_t> position(size_t(n_rows), -1);
  slots.in_place.reserve(size_t(count));
  slots.packed.reserve(size_t(count));
  for (int64_t i = 0; i < count; ++i) {
    int64_t& place = position[size_t(batches[i])];
    if (place < 0) {
      place = int64_t(slots.rows.size());
      slots.rows.push_back(batches[i]);
    }
    slots.in_place.push_back(batches[i] * row_stride);
    slots.packed.push_back(place * packed_stride);
  }
  return slots;
}

struct Inputs {
  const Tensor& logits;
  const Tensor& columns;   // points contiguous
  const Tensor* variance;  // null for the plugin link
  const Tensor* targets;   // null for the expected losses
};

// Memory of one worker.
template <class T>
struct Worker {
  Worker(const Inputs& inputs, const Slots& slots, const LookaheadTile<T>& common, int64_t tile_points)
      : inputs(inputs),
        slots(slots),
        common(common),
        logits(common.n_classes * tile_points),
        columns(int64_t(slots.rows.size()) * kLanes<T>),
        variance(tile_points),
        targets(tile_points),
        buffer(lookahead_buffer_size<T>(common.n_classes, common.batch_size)) {}

  explicit operator bool() const {
    return logits && columns && variance && targets && buffer;
  }

  void sum_tile(int64_t start, int64_t points, int64_t begin, int64_t end, double* sums) const {
    LookaheadTile<T> tile = common;
    tile.points = points;
    pack_logits(inputs.logits, start, points, logits.data());
    tile.logits = logits.data();
    point_at_columns(start, tile);
    pack_points(start, tile);
    tile.buffer = buffer.data();
    lookahead_loss_kernel(tile, begin, end, sums);
  }

 private:
  // Columns in place, or packed if they end inside a block.
  void point_at_columns(int64_t start, LookaheadTile<T>& tile) const {
    const T* values = inputs.columns.const_data_ptr<T>() + start;
    if (tile.points % kLanes<T> == 0) {
      tile.columns = values;
      tile.slots = slots.in_place.data();
      return;
    }
    for (size_t i = 0; i < slots.rows.size(); ++i) {
      copy_block<kLanes<T>>(values + slots.rows[i] * inputs.columns.stride(0), 1, tile.points,
                            columns.data() + int64_t(i) * kLanes<T>);
    }
    tile.columns = columns.data();
    tile.slots = slots.packed.data();
  }

  void pack_points(int64_t start, LookaheadTile<T>& tile) const {
    constexpr int kL = kLanes<T>;
    for (int64_t block = 0; block < tile.points; block += kL) {
      if (inputs.variance != nullptr) {
        const int64_t step = inputs.variance->stride(0);
        copy_block<kL>(inputs.variance->const_data_ptr<T>() + (start + block) * step, step, tile.points - block,
                       variance.data() + block);
        tile.variance = variance.data();
      }
      if (inputs.targets != nullptr) {
        const int64_t step = inputs.targets->stride(0);
        LaneIndex<T>* offsets = targets.data() + block;
        copy_block<kL>(inputs.targets->const_data_ptr<int64_t>() + (start + block) * step, step, tile.points - block,
                       offsets);
        for (int lane = 0; lane < kL; ++lane) {
          offsets[lane] = offsets[lane] * kL + lane;
        }
        tile.targets = targets.data();
      }
    }
  }

  const Inputs& inputs;
  const Slots& slots;
  const LookaheadTile<T>& common;
  Scratch<T> logits, columns, variance;
  Scratch<LaneIndex<T>> targets;
  Scratch<T> buffer;
};

template <class T>
void lookahead_loss_impl(const Inputs& inputs, const Tensor& batches, const Tensor& coefficients,
                         const Tensor* triangle, const Tensor* beta, Loss kind, double kappa, double* out) {
  const int64_t n_classes = inputs.logits.size(0);
  const Slots slots = find_slots(batches.const_data_ptr<int64_t>(), batches.numel(), inputs.columns.size(0),
                                 inputs.columns.stride(0), kLanes<T>);
  LookaheadTile<T> common{};
  common.coefficients = coefficients.const_data_ptr<T>();
  common.triangle = triangle == nullptr ? nullptr : triangle->const_data_ptr<T>();
  common.beta = beta == nullptr ? nullptr : beta->const_data_ptr<T>();
  common.batch_size = batches.size(1);
  common.n_classes = n_classes;
  common.kind = kind;
  common.kappa = T(kappa);
  const Tiling tiling = tiling_of<T>(inputs.logits.size(1), int64_t(slots.rows.size()) + n_classes, kTileBytes);
  const auto make_worker = [&] { return Worker<T>(inputs, slots, common, tiling.tile_points); };
  sum_over_tiles<T>(tiling, batches.size(0), kOp, make_worker, out);
}

Tensor lookahead_loss_cpu(const Tensor& logits, const Tensor& columns, const Tensor& batches,
                          const Tensor& coefficients, const std::optional<Tensor>& triangle,
                          const std::optional<Tensor>& beta, const std::optional<Tensor>& variance,
                          const std::optional<Tensor>& targets, const std::string& loss_kind, double kappa) {
  const LookaheadLossArguments call =
      check_lookahead_loss(logits, columns, batches, coefficients, triangle, beta, variance, targets, loss_kind);
  const bool labelled = needs_of(call.kind).targets;
  const Tensor contiguous_batches = torch::stable::contiguous(batches);
  check_index_range(contiguous_batches, call.n_rows, kOp, "batches");
  if (labelled) {
    check_index_range(torch::stable::contiguous(*targets), call.n_classes, kOp, "targets");
  }

  Tensor sums = torch::stable::new_zeros(logits, {call.n_hypotheses}, ScalarType::Double);
  if (call.n_hypotheses == 0 || call.n_eval == 0) {
    return sums;
  }
  std::optional<Tensor> contiguous_triangle, contiguous_beta;
  if (call.linked) {
    contiguous_triangle = torch::stable::contiguous(*triangle);
    contiguous_beta = torch::stable::contiguous(*beta);
  }
  const Tensor contiguous_coefficients = torch::stable::contiguous(coefficients);
  const bool dense_columns = call.n_eval == 1 || columns.stride(1) == 1;
  const Tensor contiguous_columns = dense_columns ? columns : torch::stable::contiguous(columns);
  const Inputs inputs{logits, contiguous_columns, call.linked ? &*variance : nullptr, labelled ? &*targets : nullptr};
  dispatch_floating(call.dtype, kOp, [&](auto tag) {
    using scalar_t = typename decltype(tag)::type;
    lookahead_loss_impl<scalar_t>(
        inputs, contiguous_batches, contiguous_coefficients, call.linked ? &*contiguous_triangle : nullptr,
        call.linked ? &*contiguous_beta : nullptr, call.kind, kappa, sums.mutable_data_ptr<double>());
  });
  return sums;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(lapal_ext, CPU, m) {
  m.impl("lookahead_loss", TORCH_BOX(&lookahead_loss_cpu));
}
