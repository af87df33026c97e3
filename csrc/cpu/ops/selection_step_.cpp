// One pick of sequential selection: one pass over the pool.
//
//   c = Phi u + offset;  logits += c g^T;  v -= beta c^2;  utility of softmax(logits / sqrt(1 + kappa v))
//
// The pick is the free row with the largest utility.
//
// Shapes: pool [N, D] in any storage dtype, u [D], g [C], logits [N, C], v [N], taken [N], scale [N].
//
// Layout: pool rows are contiguous. The products c of a tile are one dot product per row, all in the same order, so
// equal rows tie exactly. Then the logits of the tile are updated class by class, which is fast for class-major logits,
// and copied to a buffer [block][C][lane]. The utility is computed from this buffer with rows in lanes.
//
// Parallel over tiles whose size depends on C only. The best rows of the tiles are compared in order (cpu/pool/rows.h).
//
// Limit: memory, one read of the pool.
#include "torch/arguments/selection_step_.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <optional>
#include <string>
#include <tuple>

#include "cpu/passes/utility_block.h"
#include "cpu/pool/rows.h"
#include "cpu/simd/lanes.h"
#include "shared/likelihood.h"
#include "torch/dispatch.h"

namespace {

using namespace lapal_ext;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr int64_t kTileBytes = 1 << 17;  // of the buffer of logits, which stays in the second-level cache

// The data of one pass: pointers and strides of the tensors.
template <class T, class S>
struct Pass {
  PoolRows<S> pool;
  bool moves;  // false if c changes nothing: then the pool is not read
  Direction<T> u;
  const T* g;
  T beta;
  T* logits;
  int64_t row_stride;
  int64_t class_stride;
  int64_t n_classes;
  T* variance;  // null for the plugin link
  int64_t variance_stride;
  TakenRows taken;
  const T* scale;  // null unless the utility needs it
  Utility kind;
  T kappa;
};

// Adds c g_k to one class of a tile and copies it to buffer + k lanes, [block][C][lane].
template <bool kContiguous, class T>
LAPAL_HD void move_class(T* logits, int64_t stride, const T* columns, T factor, bool moves, int64_t rows,
                         int64_t block_size, T* buffer) {
  constexpr int kL = kLanes<T>;
  const int64_t step = kContiguous ? 1 : stride;
  int64_t i = 0;
  for (; i + kL <= rows; i += kL) {
    T* from = logits + i * step;
    T* to = buffer + i / kL * block_size;
    if (moves) {
#pragma omp simd
      for (int lane = 0; lane < kL; ++lane) {
        const T moved = from[lane * step] + columns[i + lane] * factor;
        from[lane * step] = moved;
        to[lane] = moved;
      }
    } else {
#pragma omp simd
      for (int lane = 0; lane < kL; ++lane) {
        to[lane] = from[lane * step];
      }
    }
  }
  for (int lane = 0; i < rows; ++i, ++lane) {
    if (moves) {
      logits[i * step] += columns[i] * factor;
    }
    buffer[i / kL * block_size + lane] = logits[i * step];
  }
}

// Rows [start, start + rows); `scratch` holds n_classes * rows logits (rows padded to blocks) and `rows`
// columns.
template <class T, class S>
LAPAL_HD Best selection_tile(const Pass<T, S>& pass, int64_t start, int64_t rows, int64_t padded, T* scratch) {
  constexpr int kL = kLanes<T>;
  const int64_t block_size = pass.n_classes * kL;
  T* buffer = scratch;
  T* columns = scratch + pass.n_classes * padded;
  if (pass.moves) {
    multiply_rows(pass.pool, start, rows, {pass.u}, columns, rows);
  }
  T* logits = pass.logits + start * pass.row_stride;
  for (int64_t k = 0; k < pass.n_classes; ++k) {
    T* from = logits + k * pass.class_stride;
    if (pass.row_stride == 1) {
      move_class<true>(from, 1, columns, pass.g[k], pass.moves, rows, block_size, buffer + k * kL);
    } else {
      move_class<false>(from, pass.row_stride, columns, pass.g[k], pass.moves, rows, block_size, buffer + k * kL);
    }
  }
  Best best;
  for (int64_t i = 0; i < rows; i += kL) {
    const int valid = int(rows - i < kL ? rows - i : kL);
    const int64_t first = start + i;
    alignas(kBlockBytes) T utilities[kL];
    alignas(kBlockBytes) T scale[kL] = {};
    T* block = buffer + i * pass.n_classes;
    if (valid < kL) {
      // Lanes after the last row hold old values. These would be slow if they were subnormal.
      for (int64_t k = 0; k < pass.n_classes; ++k) {
        for (int lane = valid; lane < kL; ++lane) {
          block[k * kL + lane] = T(0);
        }
      }
    }
    if (pass.scale != nullptr) {
      load_lanes(pass.scale + first, 1, valid, scale);
    }
    if (pass.variance != nullptr) {
      alignas(kBlockBytes) T link[kL];
      T* variance = pass.variance + first * pass.variance_stride;
      load_lanes(variance, pass.variance_stride, valid, utilities);
      if (pass.moves) {
        alignas(kBlockBytes) T column[kL];
        load_lanes(columns + i, 1, valid, column);
#pragma omp simd
        for (int lane = 0; lane < kL; ++lane) {
          utilities[lane] -= pass.beta * (column[lane] * column[lane]);
        }
        store_lanes(utilities, pass.variance_stride, valid, variance);
      }
#pragma omp simd
      for (int lane = 0; lane < kL; ++lane) {
        link[lane] = mean_field(utilities[lane], pass.kappa);
      }
      utility_block_of_kind<true>(pass.kind, block, pass.n_classes, link, scale, utilities);
    } else {
      constexpr const T* kNoLink = nullptr;
      utility_block_of_kind<false>(pass.kind, block, pass.n_classes, kNoLink, scale, utilities);
    }
    pass.taken.update_best(utilities, first, valid, best);
  }
  return best;
}

#define LAPAL_SELECTION_KERNEL(T, S)                                                                           \
  LAPAL_CLONES Best selection_step_kernel(const Pass<T, S>& pass, int64_t start, int64_t rows, int64_t padded, \
                                          T* scratch) {                                                        \
    return selection_tile(pass, start, rows, padded, scratch);                                                 \
  }
LAPAL_FOR_POOL_TYPES(LAPAL_SELECTION_KERNEL)
#undef LAPAL_SELECTION_KERNEL

template <class T, class S>
Best selection_step_impl(const Pass<T, S>& pass, int64_t n_rows) {
  const int64_t fitting = kTileBytes / (int64_t(sizeof(T)) * pass.n_classes) / kLanes<T> * kLanes<T>;
  const int64_t tile_rows = std::clamp<int64_t>(fitting, 2 * kLanes<T>, kMaxTileRows);
  return take_best<T>(n_rows, tile_rows, (pass.n_classes + 1) * tile_rows, pass.taken, kOp,
                      [&](int64_t start, int64_t rows, T* scratch) {
                        return selection_step_kernel(pass, start, rows, tile_rows, scratch);
                      });
}

template <class T>
bool all_zero(const Tensor& tensor) {
  const T* values = tensor.const_data_ptr<T>();
  return std::all_of(values, values + tensor.numel(), [](T value) { return value == T(0); });
}

std::tuple<Tensor, Tensor> selection_step__cpu(const Tensor& pool, const Tensor& u, const Tensor& offset,
                                               const Tensor& g, const Tensor& beta, const Tensor& logits,
                                               const std::optional<Tensor>& variance, const Tensor& taken,
                                               const std::optional<Tensor>& scale, const std::string& kind_name,
                                               double kappa) {
  const SelectionStepArguments call =
      check_selection_step(pool, u, offset, g, beta, logits, variance, taken, scale, kind_name);
  std::optional<Tensor> dense_scale;
  if (needs_of(call.kind).scale) {
    dense_scale = torch::stable::contiguous(*scale);
  }

  Tensor index = torch::stable::new_empty(logits, {}, ScalarType::Long);
  Tensor utility = torch::stable::new_empty(logits, {});
  const Tensor dense_pool = with_contiguous_rows(pool);
  const Tensor dense_u = torch::stable::contiguous(u);
  const Tensor dense_g = torch::stable::contiguous(g);
  dispatch_floating(call.dtype, kOp, [&](auto compute) {
    using scalar_t = typename decltype(compute)::type;
    dispatch_storage(pool.scalar_type(), kOp, [&](auto storage) {
      using storage_t = typename decltype(storage)::type;
      Pass<scalar_t, Bits<storage_t>> pass{};
      pass.pool = rows_of<storage_t>(dense_pool);
      pass.u = {dense_u.const_data_ptr<scalar_t>(), *offset.const_data_ptr<scalar_t>()};
      pass.g = dense_g.const_data_ptr<scalar_t>();
      pass.beta = *beta.const_data_ptr<scalar_t>();
      const bool no_column = all_zero<scalar_t>(dense_u) && pass.u.offset == scalar_t(0);
      const bool no_effect = all_zero<scalar_t>(dense_g) && (!variance.has_value() || pass.beta == scalar_t(0));
      pass.moves = !no_column && !no_effect;
      pass.logits = logits.mutable_data_ptr<scalar_t>();
      pass.row_stride = logits.stride(0);
      pass.class_stride = logits.stride(1);
      pass.n_classes = call.n_classes;
      if (variance.has_value()) {
        pass.variance = variance->mutable_data_ptr<scalar_t>();
        pass.variance_stride = variance->stride(0);
      }
      pass.taken = {taken.mutable_data_ptr<bool>(), taken.stride(0)};
      pass.scale = dense_scale.has_value() ? dense_scale->const_data_ptr<scalar_t>() : nullptr;
      pass.kind = call.kind;
      pass.kappa = scalar_t(kappa);
      const Best best = selection_step_impl(pass, call.n_rows);
      *index.mutable_data_ptr<int64_t>() = best.index;
      *utility.mutable_data_ptr<scalar_t>() = scalar_t(best.utility);
    });
  });
  return {index, utility};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(lapal_ext, CPU, m) {
  m.impl("selection_step_", TORCH_BOX(&selection_step__cpu));
}
