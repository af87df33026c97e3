// Loss after each of M hypothetical batches, summed over E evaluation points.
//
//   logits'(e) = logits(e) + c_e^T H,  c_e = columns[batch, e];  loss of softmax(logits'), or with the
//   mean-field link of softmax(logits' / sqrt(1 + kappa v')),  v' = v - sum_t beta_t z_t^2,  T z = c_e.
//
// Shapes: logits [C, E], columns [N, E], batches [M, b], H [M, b, C], T [M, b, b], beta [M, b], v [E],
// targets [E].
//
// Layout: evaluation points lie in lanes. A tile of points is packed once, logits as [block][C][lane] and
// columns as [row][point], small enough to stay in the second-level cache while all hypotheses pass over it;
// its last block is padded. Within a block, groups of up to eight classes are accumulated in registers over
// the b columns, then two passes take the softmax from a buffer [C][lane].
//
// Parallel over pairs (tile, hypothesis): every pair writes its own float64 sum, and tiles are added in
// order, so the result depends on no thread count.
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

constexpr int kGroup = 8;                // classes in registers; with 16 lanes AVX2 needs two each
constexpr int64_t kTileBytes = 1 << 20;  // of packed logits and columns: half of a common L2 cache
constexpr int64_t kMaxTilePoints = 256;  // beyond that nothing is gained, and short sums are parallel sums
constexpr int64_t kMaxPartialSums = int64_t(1) << 20;

// One tile of points and everything about the hypotheses that is the same for all tiles.
template <class T>
struct Tile {
  int64_t points;               // valid ones
  int64_t row_size;             // padded
  const T* logits;              // [block][C][lane]
  const T* columns;             // [row][row_size]
  const T* variance;            // [row_size], null for the plugin link
  const LaneIndex<T>* targets;  // [row_size], null for the expected losses
  const int64_t* slots;         // [M, b], offsets of packed columns
  const T* coefficients;        // [M, b, C]
  const T* triangle;            // [M, b, b]
  const T* beta;                // [M, b]
  int64_t batch_size;
  int64_t n_classes;
  Loss kind;
  T kappa;
  T* buffer;  // [max(C, b)][lane] twice
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
LAPAL_HD void link_block(const Tile<T>& tile, const T* columns, const int64_t* slots, const T* triangle,
                         const T* beta, const T* variance, T* z, T* link) {
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

template <Loss kind, bool kLinked, class T>
LAPAL_HD void loss_block(const Tile<T>& tile, const T* moved, const Winner<T>& winner, const T* link,
                         const LaneIndex<T>* targets, T* losses) {
  constexpr int kL = kLanes<T>;
  alignas(kBlockBytes) T rest[kL] = {};
  alignas(kBlockBytes) T moments[kL] = {};
  if constexpr (kind != Loss::zero_one) {
    sum_others<moment_of(kind), kLinked>(moved, tile.n_classes, winner, link, rest, moments);
  }
#pragma omp simd
  for (int lane = 0; lane < kL; ++lane) {
    T target = T(0);
    bool hit = false;
    if constexpr (needs_targets(kind)) {
      hit = targets[lane] == winner.index[lane];
      target = moved[targets[lane] * kL + lane] - winner.logit[lane];
      if (kLinked) {
        target *= link[lane];
      }
    }
    losses[lane] = loss<kind>(rest[lane], moments[lane], target, hit);
  }
}

template <bool kLinked, class T>
LAPAL_HD void loss_block_of_kind(const Tile<T>& tile, const T* moved, const Winner<T>& winner, const T* link,
                                 const LaneIndex<T>* targets, T* losses) {
  switch (tile.kind) {
    case Loss::cross_entropy:
      return loss_block<Loss::cross_entropy, kLinked>(tile, moved, winner, link, targets, losses);
    case Loss::zero_one:
      return loss_block<Loss::zero_one, kLinked>(tile, moved, winner, link, targets, losses);
    case Loss::brier:
      return loss_block<Loss::brier, kLinked>(tile, moved, winner, link, targets, losses);
    case Loss::expected_cross_entropy:
      return loss_block<Loss::expected_cross_entropy, kLinked>(tile, moved, winner, link, targets, losses);
    case Loss::expected_zero_one:
      return loss_block<Loss::expected_zero_one, kLinked>(tile, moved, winner, link, targets, losses);
  }
}

template <class T>
LAPAL_HD void lookahead_loss_tile(const Tile<T>& tile, int64_t begin, int64_t end, double* sums) {
  constexpr int kL = kLanes<T>;
  const int64_t b = tile.batch_size;
  T* moved = tile.buffer;
  T* z = moved + tile.n_classes * kL;
  for (int64_t m = begin; m < end; ++m) {
    const int64_t* slots = tile.slots + m * b;
    const T* coefficients = tile.coefficients + m * b * tile.n_classes;
    alignas(kBlockBytes) double lane_sums[kL] = {};
    for (int64_t start = 0; start < tile.points; start += kL) {
      const LaneIndex<T>* targets = tile.targets == nullptr ? nullptr : tile.targets + start;
      alignas(kBlockBytes) T losses[kL];
      alignas(kBlockBytes) T link[kL];
      Winner<T> winner;
      move_block(tile, tile.logits + start * tile.n_classes, tile.columns + start, slots, coefficients, moved,
                 winner);
      if (tile.variance != nullptr) {
        link_block(tile, tile.columns + start, slots, tile.triangle + m * b * b, tile.beta + m * b,
                   tile.variance + start, z, link);
        loss_block_of_kind<true>(tile, moved, winner, link, targets, losses);
      } else {
        loss_block_of_kind<false>(tile, moved, winner, link, targets, losses);
      }
      if (start + kL > tile.points) {
        for (int64_t lane = tile.points - start; lane < kL; ++lane) {
          losses[lane] = T(0);
        }
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
    sums[m] = sum;
  }
}

LAPAL_CLONES void lookahead_loss_kernel(const Tile<float>& tile, int64_t begin, int64_t end, double* sums) {
  lookahead_loss_tile(tile, begin, end, sums);
}

LAPAL_CLONES void lookahead_loss_kernel(const Tile<double>& tile, int64_t begin, int64_t end, double* sums) {
  lookahead_loss_tile(tile, begin, end, sums);
}

// Numbers the rows of `columns` that occur in `batches`, in order of appearance: only those are packed.
std::vector<int64_t> used_rows(const int64_t* batches, int64_t count, int64_t n_rows,
                               std::vector<int64_t>& slots) {
  std::vector<int64_t> slot_of_row(size_t(n_rows), -1);
  std::vector<int64_t> rows;
  slots.resize(size_t(count));
  for (int64_t i = 0; i < count; ++i) {
    int64_t& slot = slot_of_row[size_t(batches[i])];
    if (slot < 0) {
      slot = int64_t(rows.size());
      rows.push_back(batches[i]);
    }
    slots[size_t(i)] = slot;
  }
  return rows;
}

// Copies `points` elements and fills up to `padded` with zeros.
template <class To, class From>
void pack_row(const From* from, int64_t stride, int64_t points, int64_t padded, To* to) {
  if (stride == 1) {
    for (int64_t e = 0; e < points; ++e) {
      to[e] = To(from[e]);
    }
  } else {
    for (int64_t e = 0; e < points; ++e) {
      to[e] = To(from[e * stride]);
    }
  }
  std::fill(to + points, to + padded, To(0));
}

struct Inputs {
  const Tensor& logits;
  const Tensor& columns;
  const Tensor* variance;
  const Tensor* targets;
};

// Memory that one worker packs its tiles into.
template <class T>
struct PackedTile {
  PackedTile(int64_t n_classes, int64_t n_rows, int64_t batch_size, int64_t padded)
      : logits(n_classes * padded),
        columns(n_rows * padded),
        variance(padded),
        targets(padded),
        row(padded),
        buffer((n_classes + batch_size) * kLanes<T>) {}

  explicit operator bool() const {
    return logits && columns && variance && targets && row && buffer;
  }

  void pack(const Inputs& inputs, const std::vector<int64_t>& rows, int64_t start, Tile<T>& tile) {
    constexpr int kL = kLanes<T>;
    const T* source = inputs.logits.const_data_ptr<T>() + start * inputs.logits.stride(1);
    for (int64_t k = 0; k < tile.n_classes; ++k) {
      pack_row(source + k * inputs.logits.stride(0), inputs.logits.stride(1), tile.points, tile.row_size,
               row.data());
      for (int64_t e = 0; e < tile.row_size; e += kL) {
        std::copy(row.data() + e, row.data() + e + kL, logits.data() + e * tile.n_classes + k * kL);
      }
    }
    source = inputs.columns.const_data_ptr<T>() + start * inputs.columns.stride(1);
    for (size_t slot = 0; slot < rows.size(); ++slot) {
      pack_row(source + rows[slot] * inputs.columns.stride(0), inputs.columns.stride(1), tile.points,
               tile.row_size, columns.data() + int64_t(slot) * tile.row_size);
    }
    tile.logits = logits.data();
    tile.columns = columns.data();
    if (inputs.variance != nullptr) {
      const int64_t stride = inputs.variance->stride(0);
      pack_row(inputs.variance->const_data_ptr<T>() + start * stride, stride, tile.points, tile.row_size,
               variance.data());
      tile.variance = variance.data();
    }
    if (inputs.targets != nullptr) {
      const int64_t stride = inputs.targets->stride(0);
      pack_row(inputs.targets->const_data_ptr<int64_t>() + start * stride, stride, tile.points, tile.row_size,
               targets.data());
      tile.targets = targets.data();
    }
    tile.buffer = buffer.data();
  }

  Scratch<T> logits, columns, variance;
  Scratch<LaneIndex<T>> targets;
  Scratch<T> row, buffer;
};

template <class T>
void lookahead_loss_impl(const Inputs& inputs, const Tensor& batches, const Tensor& coefficients,
                         const Tensor* triangle, const Tensor* beta, Loss kind, double kappa, double* out) {
  const int64_t n_classes = inputs.logits.size(0), n_eval = inputs.logits.size(1);
  const int64_t n_hypotheses = batches.size(0), batch_size = batches.size(1);
  std::vector<int64_t> slots;
  const std::vector<int64_t> rows =
      used_rows(batches.const_data_ptr<int64_t>(), batches.numel(), inputs.columns.size(0), slots);
  const int64_t n_rows = int64_t(rows.size());

  const int64_t fitting = kTileBytes / (int64_t(sizeof(T)) * (n_rows + n_classes)) / kLanes<T> * kLanes<T>;
  const int64_t tile_points = std::clamp<int64_t>(fitting, kLanes<T>, kMaxTilePoints);
  const int64_t padded = std::min(tile_points, round_up(n_eval, kLanes<T>));
  const int64_t n_tiles = (n_eval + tile_points - 1) / tile_points;
  for (int64_t& slot : slots) {
    slot *= padded;
  }

  const Tile<T> common{0,
                       padded,
                       nullptr,
                       nullptr,
                       nullptr,
                       nullptr,
                       slots.data(),
                       coefficients.const_data_ptr<T>(),
                       triangle == nullptr ? nullptr : triangle->const_data_ptr<T>(),
                       beta == nullptr ? nullptr : beta->const_data_ptr<T>(),
                       batch_size,
                       n_classes,
                       kind,
                       T(kappa),
                       nullptr};
  std::atomic<bool> out_of_memory{false};
  const int64_t round = std::max<int64_t>(1, kMaxPartialSums / n_hypotheses);  // tiles between two additions
  std::vector<double> sums(size_t(std::min(round, n_tiles) * n_hypotheses));
  for (int64_t first = 0; first < n_tiles; first += round) {
    const int64_t count = std::min(round, n_tiles - first);
    torch::stable::parallel_for(0, count * n_hypotheses, 1, [&](int64_t begin, int64_t end) {
      PackedTile<T> packed(n_classes, n_rows, batch_size, padded);
      if (!packed) {
        out_of_memory = true;
        return;
      }
      while (begin < end) {
        const int64_t index = begin / n_hypotheses, base = index * n_hypotheses;
        const int64_t stop = std::min(end, base + n_hypotheses);
        const int64_t start = (first + index) * tile_points;
        Tile<T> tile = common;
        tile.points = std::min(tile_points, n_eval - start);
        packed.pack(inputs, rows, start, tile);
        lookahead_loss_kernel(tile, begin - base, stop - base, sums.data() + base);
        begin = stop;
      }
    });
    STD_TORCH_CHECK(!out_of_memory, "lookahead_loss: out of memory");
    for (int64_t index = 0; index < count; ++index) {
      for (int64_t m = 0; m < n_hypotheses; ++m) {
        out[m] += sums[size_t(index * n_hypotheses + m)];
      }
    }
  }
}

constexpr const char* kOp = "lookahead_loss";

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
  const Inputs inputs{logits, columns, linked ? &*variance : nullptr, labelled ? &*targets : nullptr};
  dispatch_floating(dtype, kOp, [&](auto tag) {
    using scalar_t = typename decltype(tag)::type;
    lookahead_loss_impl<scalar_t>(
        inputs, contiguous_batches, contiguous_coefficients, linked ? &*contiguous_triangle : nullptr,
        linked ? &*contiguous_beta : nullptr, kind, kappa, sums.mutable_data_ptr<double>());
  });
  return sums;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(lapal_ext, CPU, m) {
  m.impl("lookahead_loss", TORCH_BOX(&lookahead_loss_cpu));
}
