// Loss after each of M hypothetical batches, summed over E evaluation points.
//
//   logits'(e) = logits(e) + c_e^T H,  c_e = columns[batch, e];  loss of softmax(logits'), or with the
//   mean-field link of softmax(logits' / sqrt(1 + kappa v')),  v' = v - sum_t beta_t z_t^2,  T z = c_e.
//
// Shapes: logits [C, E], columns [N, E], batches [M, b], H [M, b, C], T [M, b, b], beta [M, b], v [E],
// targets [E].
//
// Layout: evaluation points lie in lanes. Columns are read where they are (a copy would cost more than the few times
// each is used), the logits of a tile of points are packed as [block][C][lane]. A tile is small enough for its columns
// to stay in the second-level cache while all hypotheses pass over it; points beyond the last full block are a tile of
// their own, with packed columns. Within a block, a group of classes is accumulated in registers over the b columns,
// then two passes take the softmax from a buffer [C][lane]. What the softmax leaves of each point is kept until the
// tile is done: the logarithms of many points together are limited by throughput, one by one by latency.
//
// Parallel over pairs (tile, hypothesis): every pair writes its own float64 sum, and tiles are added in order, so the
// result depends on no thread count.
//
// Limit: arithmetic. Per (hypothesis, point, class) b multiply-adds and about 20 operations of softmax.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <atomic>
#include <optional>
#include <string>
#include <vector>

#include "checks.h"
#include "cpu/simd.h"
#include "dispatch.h"

namespace {

using namespace lapal_ext;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr const char* kOp = "lookahead_loss";
constexpr int kGroup = 8;                // classes in registers; with 16 lanes AVX2 needs two each
constexpr int64_t kTileBytes = 1 << 20;  // of columns and logits: half of a common second-level cache
constexpr int64_t kMaxTilePoints = 256;  // longer tiles gain nothing and leave less to share between threads
constexpr int64_t kMaxPartialSums = int64_t(1) << 20;

// One tile of points, and everything about the hypotheses that is the same for all tiles.
template <class T>
struct Tile {
  int64_t points;               // a multiple of the lanes, but for the last tile
  const T* logits;              // [block][C][lane]
  const T* columns;             // of the tile's first point
  const T* variance;            // [point], null for the plugin link
  const LaneIndex<T>* targets;  // [point], offsets label * lanes + lane; null for the expected losses
  const int64_t* slots;         // [M, b], offsets of the columns
  const T* coefficients;        // [M, b, C]
  const T* triangle;            // [M, b, b]
  const T* beta;                // [M, b]
  int64_t batch_size;
  int64_t n_classes;
  Loss kind;
  T kappa;
  T* buffer;  // [C + b][lane]
};

// What the softmax leaves of each point of a tile.
template <class T>
struct Softmaxes {
  alignas(kBlockBytes) T rest[kMaxTilePoints];
  alignas(kBlockBytes) T moments[kMaxTilePoints];
  alignas(kBlockBytes) T targets[kMaxTilePoints];             // shifted logit of the label
  alignas(kBlockBytes) LaneIndex<T> winners[kMaxTilePoints];  // as offsets, like Tile::targets
};

// moved[k][lane] = logits[k][lane] + sum_t columns_t[lane] H[t, k] for kClasses classes from `first`.
template <int kClasses, class T>
LAPAL_HD void move_group(const Tile<T>& tile, const T* logits, const T* columns, const int64_t* slots,
                         const T* coefficients, int64_t first, T* moved, Winner<T>& winner) {
  constexpr int kL = kLanes<T>;
  T sums[kClasses][kL];
  LAPAL_UNROLL
  for (int k = 0; k < kClasses; ++k) {
#pragma omp simd
    for (int lane = 0; lane < kL; ++lane) {
      sums[k][lane] = logits[(first + k) * kL + lane];
    }
  }
  for (int64_t t = 0; t < tile.batch_size; ++t) {
    const T* column = columns + slots[t];
    const T* weights = coefficients + t * tile.n_classes + first;
    LAPAL_UNROLL
    for (int k = 0; k < kClasses; ++k) {
      const T weight = weights[k];
#pragma omp simd
      for (int lane = 0; lane < kL; ++lane) {
        sums[k][lane] += column[lane] * weight;
      }
    }
  }
  winner.template meet<kClasses>(&sums[0][0], first);
  LAPAL_UNROLL
  for (int k = 0; k < kClasses; ++k) {
#pragma omp simd
    for (int lane = 0; lane < kL; ++lane) {
      moved[(first + k) * kL + lane] = sums[k][lane];
    }
  }
}

// Logits of one block after the hypothesis, and their winner. Groups are as equal as possible: short ones
// would leave the multiply-add units waiting for their own results.
template <class T>
LAPAL_HD void move_block(const Tile<T>& tile, const T* logits, const T* columns, const int64_t* slots,
                         const T* coefficients, T* moved, Winner<T>& winner) {
  winner.reset();
  const int64_t n_groups = (tile.n_classes + kGroup - 1) / kGroup;
  const int64_t small = tile.n_classes / n_groups;
  const int64_t n_large = tile.n_classes % n_groups;
  int64_t first = 0;
  for (int64_t group = 0; group < n_groups; ++group) {
    const int64_t size = small + (group < n_large);
    switch (size) {
      case 1:
        move_group<1>(tile, logits, columns, slots, coefficients, first, moved, winner);
        break;
      case 2:
        move_group<2>(tile, logits, columns, slots, coefficients, first, moved, winner);
        break;
      case 3:
        move_group<3>(tile, logits, columns, slots, coefficients, first, moved, winner);
        break;
      case 4:
        move_group<4>(tile, logits, columns, slots, coefficients, first, moved, winner);
        break;
      case 5:
        move_group<5>(tile, logits, columns, slots, coefficients, first, moved, winner);
        break;
      case 6:
        move_group<6>(tile, logits, columns, slots, coefficients, first, moved, winner);
        break;
      case 7:
        move_group<7>(tile, logits, columns, slots, coefficients, first, moved, winner);
        break;
      default:
        move_group<8>(tile, logits, columns, slots, coefficients, first, moved, winner);
    }
    first += size;
  }
}

// Factor of the mean-field link: z by forward substitution in each lane.
template <class T>
LAPAL_HD void link_block(const Tile<T>& tile, const T* columns, const int64_t* slots, const T* triangle, const T* beta,
                         const T* variance, T* z, T* link) {
  constexpr int kL = kLanes<T>;
  alignas(kBlockBytes) T left[kL];
#pragma omp simd
  for (int lane = 0; lane < kL; ++lane) {
    left[lane] = variance[lane];
  }
  for (int64_t t = 0; t < tile.batch_size; ++t) {
    alignas(kBlockBytes) T sum[kL];
    const T* column = columns + slots[t];
#pragma omp simd
    for (int lane = 0; lane < kL; ++lane) {
      sum[lane] = column[lane];
    }
    for (int64_t s = 0; s < t; ++s) {
      const T weight = triangle[t * tile.batch_size + s];
#pragma omp simd
      for (int lane = 0; lane < kL; ++lane) {
        sum[lane] -= weight * z[s * kL + lane];
      }
    }
    const T shrinkage = beta[t];
#pragma omp simd
    for (int lane = 0; lane < kL; ++lane) {
      z[t * kL + lane] = sum[lane];
      left[lane] -= shrinkage * (sum[lane] * sum[lane]);
    }
  }
#pragma omp simd
  for (int lane = 0; lane < kL; ++lane) {
    link[lane] = mean_field(left[lane], tile.kappa);
  }
}

// Softmax of one block, into the places of its lanes.
template <Moment moment, bool kLinked, class T>
LAPAL_HD void softmax_block(const Tile<T>& tile, const T* moved, const Winner<T>& winner, const T* link, int64_t start,
                            Softmaxes<T>& softmaxes) {
  constexpr int kL = kLanes<T>;
  sum_others<moment, kLinked>(moved, tile.n_classes, winner, link, softmaxes.rest + start, softmaxes.moments + start);
  if (tile.targets != nullptr) {
    const LaneIndex<T>* targets = tile.targets + start;
    T* shifted = softmaxes.targets + start;
    for (int lane = 0; lane < kL; ++lane) {
      shifted[lane] = moved[targets[lane]];
    }
#pragma omp simd
    for (int lane = 0; lane < kL; ++lane) {
      shifted[lane] -= winner.logit[lane];
      if (kLinked) {
        shifted[lane] *= link[lane];
      }
    }
  }
}

template <bool kLinked, class T>
LAPAL_HD void softmax_block_for_loss(const Tile<T>& tile, const T* moved, const Winner<T>& winner, const T* link,
                                     int64_t start, Softmaxes<T>& softmaxes) {
  switch (tile.kind) {
    case Loss::cross_entropy:
    case Loss::expected_zero_one:
      return softmax_block<Moment::none, kLinked>(tile, moved, winner, link, start, softmaxes);
    case Loss::expected_cross_entropy:
      return softmax_block<Moment::energy, kLinked>(tile, moved, winner, link, start, softmaxes);
    case Loss::brier:
      return softmax_block<Moment::squares, kLinked>(tile, moved, winner, link, start, softmaxes);
    case Loss::zero_one:
      return;  // the winner says it all
  }
}

// Sum of the losses of a tile's points, in a fixed order.
template <Loss kind, class T>
LAPAL_HD double sum_losses(const Tile<T>& tile, const Softmaxes<T>& softmaxes) {
  constexpr int kL = kLanes<T>;
  alignas(kBlockBytes) double lane_sums[kL] = {};
  for (int64_t start = 0; start < tile.points; start += kL) {
    alignas(kBlockBytes) T losses[kL];
#pragma omp simd
    for (int lane = 0; lane < kL; ++lane) {
      const int64_t e = start + lane;
      const bool hit = needs_targets(kind) && tile.targets[e] == softmaxes.winners[e];
      losses[lane] = loss<kind>(softmaxes.rest[e], softmaxes.moments[e], softmaxes.targets[e], hit);
    }
    for (int64_t lane = tile.points - start; lane < kL; ++lane) {
      losses[lane] = T(0);
    }
#pragma omp simd
    for (int lane = 0; lane < kL; ++lane) {
      lane_sums[lane] += double(losses[lane]);
    }
  }
  double sum = 0.0;
  for (int lane = 0; lane < kL; ++lane) {
    sum += lane_sums[lane];
  }
  return sum;
}

template <class T>
LAPAL_HD double sum_losses_of_kind(const Tile<T>& tile, const Softmaxes<T>& softmaxes) {
  switch (tile.kind) {
    case Loss::cross_entropy:
      return sum_losses<Loss::cross_entropy>(tile, softmaxes);
    case Loss::zero_one:
      return sum_losses<Loss::zero_one>(tile, softmaxes);
    case Loss::brier:
      return sum_losses<Loss::brier>(tile, softmaxes);
    case Loss::expected_cross_entropy:
      return sum_losses<Loss::expected_cross_entropy>(tile, softmaxes);
    default:
      return sum_losses<Loss::expected_zero_one>(tile, softmaxes);
  }
}

template <class T>
LAPAL_HD void lookahead_loss_tile(const Tile<T>& tile, int64_t begin, int64_t end, double* sums) {
  constexpr int kL = kLanes<T>;
  const int64_t b = tile.batch_size;
  T* moved = tile.buffer;
  T* z = moved + tile.n_classes * kL;
  Softmaxes<T> softmaxes;
  for (int64_t m = begin; m < end; ++m) {
    const int64_t* slots = tile.slots + m * b;
    // The columns of a hypothesis lie on b pages: those of the next one are called for while this one is computed.
    const int64_t* next_slots = m + 1 < end ? slots + b : slots;
    const T* coefficients = tile.coefficients + m * b * tile.n_classes;
    for (int64_t start = 0; start < tile.points; start += kL) {
      alignas(kBlockBytes) T link[kL];
      Winner<T> winner;
      for (int64_t t = 0; t < b; ++t) {
        __builtin_prefetch(tile.columns + start + next_slots[t]);
      }
      move_block(tile, tile.logits + start * tile.n_classes, tile.columns + start, slots, coefficients, moved, winner);
#pragma omp simd
      for (int lane = 0; lane < kL; ++lane) {
        softmaxes.winners[start + lane] = winner.index[lane] * kL + lane;
      }
      if (tile.variance != nullptr) {
        link_block(tile, tile.columns + start, slots, tile.triangle + m * b * b, tile.beta + m * b,
                   tile.variance + start, z, link);
        softmax_block_for_loss<true>(tile, moved, winner, link, start, softmaxes);
      } else {
        softmax_block_for_loss<false>(tile, moved, winner, link, start, softmaxes);
      }
    }
    sums[m] = sum_losses_of_kind(tile, softmaxes);
  }
}

LAPAL_CLONES void lookahead_loss_kernel(const Tile<float>& tile, int64_t begin, int64_t end, double* sums) {
  lookahead_loss_tile(tile, begin, end, sums);
}

LAPAL_CLONES void lookahead_loss_kernel(const Tile<double>& tile, int64_t begin, int64_t end, double* sums) {
  lookahead_loss_tile(tile, begin, end, sums);
}

// The points of a call: tiles of full blocks, then what is left.
struct Tiling {
  int64_t n_eval;
  int64_t tile_points;
  int64_t n_full_points;
  int64_t n_full_tiles;
  int64_t n_tiles;

  int64_t start(int64_t tile) const {
    return tile < n_full_tiles ? tile * tile_points : n_full_points;
  }
  int64_t points(int64_t tile) const {
    return tile < n_full_tiles ? std::min(tile_points, n_full_points - start(tile)) : n_eval - n_full_points;
  }
};

template <class T>
Tiling tiling_of(int64_t n_eval, int64_t n_rows, int64_t n_classes) {
  constexpr int kL = kLanes<T>;
  const int64_t fitting = kTileBytes / (int64_t(sizeof(T)) * (n_rows + n_classes)) / kL * kL;
  Tiling tiling{};
  tiling.n_eval = n_eval;
  tiling.tile_points = std::clamp<int64_t>(fitting, kL, kMaxTilePoints);
  tiling.n_full_points = n_eval / kL * kL;
  tiling.n_full_tiles = (tiling.n_full_points + tiling.tile_points - 1) / tiling.tile_points;
  tiling.n_tiles = tiling.n_full_tiles + (tiling.n_full_points < n_eval);
  return tiling;
}

// Where the columns of every hypothesis lie: offsets into `columns`, and into the packed columns of the last tile,
// which holds only the rows that occur, in order of appearance.
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

// Memory that one worker packs its tiles into.
template <class T>
struct PackedTile {
  PackedTile(int64_t n_classes, int64_t n_rows, int64_t batch_size, int64_t points)
      : logits(n_classes * points),
        columns(n_rows * kLanes<T>),
        variance(points),
        targets(points),
        buffer((n_classes + batch_size) * kLanes<T>) {}

  explicit operator bool() const {
    return logits && columns && variance && targets && buffer;
  }

  void pack(const Inputs& inputs, const Slots& slots, int64_t start, Tile<T>& tile) const {
    constexpr int kL = kLanes<T>;
    const int64_t points = tile.points;
    const int64_t stride = inputs.logits.stride(1);
    for (int64_t k = 0; k < tile.n_classes; ++k) {
      const T* from = inputs.logits.const_data_ptr<T>() + k * inputs.logits.stride(0) + start * stride;
      for (int64_t block = 0; block < points; block += kL) {
        copy_block(from + block * stride, stride, points - block, logits.data() + block * tile.n_classes + k * kL);
      }
    }
    tile.logits = logits.data();
    if (points % kL == 0) {
      tile.columns = inputs.columns.const_data_ptr<T>() + start;
      tile.slots = slots.in_place.data();
    } else {
      for (size_t i = 0; i < slots.rows.size(); ++i) {
        copy_block(inputs.columns.const_data_ptr<T>() + slots.rows[i] * inputs.columns.stride(0) + start, 1, points,
                   columns.data() + int64_t(i) * kL);
      }
      tile.columns = columns.data();
      tile.slots = slots.packed.data();
    }
    for (int64_t block = 0; block < points; block += kL) {
      if (inputs.variance != nullptr) {
        const int64_t step = inputs.variance->stride(0);
        copy_block(inputs.variance->const_data_ptr<T>() + (start + block) * step, step, points - block,
                   variance.data() + block);
        tile.variance = variance.data();
      }
      if (inputs.targets != nullptr) {
        const int64_t step = inputs.targets->stride(0);
        LaneIndex<T>* offsets = targets.data() + block;
        copy_block(inputs.targets->const_data_ptr<int64_t>() + (start + block) * step, step, points - block, offsets);
        for (int lane = 0; lane < kL; ++lane) {
          offsets[lane] = offsets[lane] * kL + lane;
        }
        tile.targets = targets.data();
      }
    }
    tile.buffer = buffer.data();
  }

  // One block of lanes; those beyond `valid` are zero.
  template <class To, class From>
  static void copy_block(const From* from, int64_t stride, int64_t valid, To* to) {
    for (int lane = 0; lane < kLanes<T>; ++lane) {
      to[lane] = lane < valid ? To(from[lane * stride]) : To(0);
    }
  }

  Scratch<T> logits, columns, variance;
  Scratch<LaneIndex<T>> targets;
  Scratch<T> buffer;
};

template <class T>
void lookahead_loss_impl(const Inputs& inputs, const Tensor& batches, const Tensor& coefficients,
                         const Tensor* triangle, const Tensor* beta, Loss kind, double kappa, double* out) {
  const int64_t n_classes = inputs.logits.size(0), n_hypotheses = batches.size(0);
  const Slots slots = find_slots(batches.const_data_ptr<int64_t>(), batches.numel(), inputs.columns.size(0),
                                 inputs.columns.stride(0), kLanes<T>);
  const int64_t n_rows = int64_t(slots.rows.size());
  const Tiling tiling = tiling_of<T>(inputs.logits.size(1), n_rows, n_classes);

  Tile<T> common{};
  common.coefficients = coefficients.const_data_ptr<T>();
  common.triangle = triangle == nullptr ? nullptr : triangle->const_data_ptr<T>();
  common.beta = beta == nullptr ? nullptr : beta->const_data_ptr<T>();
  common.batch_size = batches.size(1);
  common.n_classes = n_classes;
  common.kind = kind;
  common.kappa = T(kappa);
  std::atomic<bool> out_of_memory{false};
  const int64_t round = std::max<int64_t>(1, kMaxPartialSums / n_hypotheses);  // tiles between two additions
  std::vector<double> sums(size_t(std::min(round, tiling.n_tiles) * n_hypotheses));
  for (int64_t first = 0; first < tiling.n_tiles; first += round) {
    const int64_t count = std::min(round, tiling.n_tiles - first);
    torch::stable::parallel_for(0, count * n_hypotheses, 1, [&](int64_t begin, int64_t end) {
      const PackedTile<T> packed(n_classes, n_rows, common.batch_size, tiling.tile_points);
      if (!packed) {
        out_of_memory = true;
        return;
      }
      while (begin < end) {
        const int64_t index = begin / n_hypotheses, base = index * n_hypotheses;
        const int64_t stop = std::min(end, base + n_hypotheses);
        Tile<T> tile = common;
        tile.points = tiling.points(first + index);
        packed.pack(inputs, slots, tiling.start(first + index), tile);
        lookahead_loss_kernel(tile, begin - base, stop - base, sums.data() + base);
        begin = stop;
      }
    });
    STD_TORCH_CHECK(!out_of_memory, kOp, ": out of memory");
    for (int64_t index = 0; index < count; ++index) {
      for (int64_t m = 0; m < n_hypotheses; ++m) {
        out[m] += sums[size_t(index * n_hypotheses + m)];
      }
    }
  }
}

Loss parse_loss(const std::string& kind) {
  if (kind == "cross_entropy") {
    return Loss::cross_entropy;
  }
  if (kind == "zero_one") {
    return Loss::zero_one;
  }
  if (kind == "brier") {
    return Loss::brier;
  }
  if (kind == "expected_cross_entropy") {
    return Loss::expected_cross_entropy;
  }
  STD_TORCH_CHECK(kind == "expected_zero_one", kOp, ": unknown loss '", kind, "'");
  return Loss::expected_zero_one;
}

Tensor lookahead_loss_cpu(const Tensor& logits, const Tensor& columns, const Tensor& batches,
                          const Tensor& coefficients, const std::optional<Tensor>& triangle,
                          const std::optional<Tensor>& beta, const std::optional<Tensor>& variance,
                          const std::optional<Tensor>& targets, const std::string& loss_kind, double kappa) {
  const Loss kind = parse_loss(loss_kind);
  check_dim(logits, 2, kOp, "logits");
  check_dim(batches, 2, kOp, "batches");
  const int64_t n_classes = logits.size(0), n_eval = logits.size(1);
  const int64_t n_hypotheses = batches.size(0), batch_size = batches.size(1);
  const ScalarType dtype = logits.scalar_type();
  STD_TORCH_CHECK(n_classes > 0, kOp, ": logits must have at least one class");
  check_shape(columns, {kAnySize, n_eval}, kOp, "columns");
  check_shape(coefficients, {n_hypotheses, batch_size, n_classes}, kOp, "coefficients");
  check_dtype(columns, dtype, kOp, "columns");
  check_dtype(coefficients, dtype, kOp, "coefficients");
  check_dtype(batches, ScalarType::Long, kOp, "batches");

  const bool linked = triangle.has_value() && beta.has_value() && variance.has_value();
  std::optional<Tensor> contiguous_triangle, contiguous_beta;
  if (linked) {
    check_shape(*triangle, {n_hypotheses, batch_size, batch_size}, kOp, "triangle");
    check_shape(*beta, {n_hypotheses, batch_size}, kOp, "beta");
    check_shape(*variance, {n_eval}, kOp, "variance");
    check_dtype(*triangle, dtype, kOp, "triangle");
    check_dtype(*beta, dtype, kOp, "beta");
    check_dtype(*variance, dtype, kOp, "variance");
    contiguous_triangle = torch::stable::contiguous(*triangle);
    contiguous_beta = torch::stable::contiguous(*beta);
  }
  const Tensor contiguous_batches = torch::stable::contiguous(batches);
  check_index_range(contiguous_batches, columns.size(0), kOp, "batches");
  const bool labelled = needs_targets(kind);
  if (labelled) {
    STD_TORCH_CHECK(targets.has_value(), kOp, ": targets must be given for loss '", loss_kind, "'");
    check_shape(*targets, {n_eval}, kOp, "targets");
    check_dtype(*targets, ScalarType::Long, kOp, "targets");
    check_index_range(torch::stable::contiguous(*targets), n_classes, kOp, "targets");
  }

  Tensor sums = torch::stable::new_zeros(logits, {n_hypotheses}, ScalarType::Double);
  if (n_hypotheses == 0 || n_eval == 0) {
    return sums;
  }
  const Tensor contiguous_coefficients = torch::stable::contiguous(coefficients);
  const bool dense_columns = n_eval == 1 || columns.stride(1) == 1;
  const Tensor contiguous_columns = dense_columns ? columns : torch::stable::contiguous(columns);
  const Inputs inputs{logits, contiguous_columns, linked ? &*variance : nullptr, labelled ? &*targets : nullptr};
  dispatch_floating(dtype, kOp, [&](auto tag) {
    using scalar_t = typename decltype(tag)::type;
    lookahead_loss_impl<scalar_t>(inputs, contiguous_batches, contiguous_coefficients,
                                  linked ? &*contiguous_triangle : nullptr, linked ? &*contiguous_beta : nullptr, kind,
                                  kappa, sums.mutable_data_ptr<double>());
  });
  return sums;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(lapal_ext, CPU, m) {
  m.impl("lookahead_loss", TORCH_BOX(&lookahead_loss_cpu));
}
