// One pick of sequential selection: a single pass over the pool.
//
//   c = Phi u + offset;  logits += c g^T;  v -= beta c^2;  utility of softmax(logits / sqrt(1 + kappa v));
//   the free row with the largest utility is taken.
//
// Shapes: pool [N, D] in any storage dtype, u [D], g [C], logits [N, C], v [N], taken [N], scale [N].
//
// Layout: pool rows contiguous. Rows are worked off in tiles. The columns c of a tile come from one dot
// product per row, each in the same order, so equal rows tie exactly wherever they lie. The tile's logits are
// then updated class by class (contiguous where the logits are class-major, the fast layout) and copied to a
// buffer [block][C][lane], from which the utility is taken with rows in lanes.
//
// Parallel over tiles, whose size depends on C alone; each keeps its best row, and the tiles are compared in
// order: the lowest index of equals wins, a NaN before all, for any thread count.
//
// Limit: memory, one read of the pool.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <atomic>
#include <limits>
#include <optional>
#include <string>
#include <tuple>
#include <type_traits>
#include <vector>

#include "checks.h"
#include "choices.h"
#include "cpu/simd.h"
#include "cpu/utility_block.h"
#include "dispatch.h"

namespace {

using namespace lapal_ext;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr const char* kOp = "selection_step_";
constexpr int64_t kTileBytes = 1 << 17;  // of the buffer of logits: it stays in the second-level cache
constexpr int64_t kMaxTileRows = 512;    // long enough runs in every class, short enough to balance threads

// How far ahead of the row in work the pool is called for: left alone, the hardware stops at every page and while a
// tile is scored. Half-precision pools out of cache gained a quarter.
constexpr int64_t kPrefetchBytes = 1 << 14;

struct Best {
  int64_t index;  // -1: no free row
  double utility;
};

// Whether a utility seen later replaces the best so far: it must be larger, or the first NaN.
constexpr bool replaces(double later, double best) {
  return later > best || (later != later && best == best);
}

// A pass over the rows; the pointers are those of the tensors, with their strides.
template <class T, class S>
struct Pass {
  const S* pool;
  int64_t pool_stride;
  int64_t n_features;
  bool moves;  // false: c counts for nothing, and the pool is not read
  const T* u;
  T offset;
  const T* g;
  T beta;
  T* logits;
  int64_t row_stride;
  int64_t class_stride;
  int64_t n_classes;
  T* variance;  // null for the plugin link
  int64_t variance_stride;
  const bool* taken;
  int64_t taken_stride;
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
    const int64_t row_bytes = pass.n_features * int64_t(sizeof(S));
    const int64_t ahead = pass.pool_stride * (kPrefetchBytes / (row_bytes + 1) + 1);
    for (int64_t i = 0; i < rows; ++i) {
      const S* row = pass.pool + (start + i) * pass.pool_stride;
      const char* later = reinterpret_cast<const char*>(row + ahead);
      for (int64_t byte = 0; byte < row_bytes; byte += kBlockBytes) {
        __builtin_prefetch(later + byte);
      }
      columns[i] = dot(row, pass.u, pass.n_features) + pass.offset;
    }
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
  Best best{-1, -std::numeric_limits<double>::infinity()};
  for (int64_t i = 0; i < rows; i += kL) {
    const int valid = int(rows - i < kL ? rows - i : kL);
    alignas(kBlockBytes) T utilities[kL];
    alignas(kBlockBytes) T link[kL];
    alignas(kBlockBytes) T scale[kL];
    for (int lane = 0; lane < kL; ++lane) {
      utilities[lane] = T(0);
      link[lane] = T(0);
      scale[lane] = T(0);
    }
    T* block = buffer + i * pass.n_classes;
    if (valid < kL) {
      // The lanes behind the last row hold whatever was there: harmless, but slow where it is subnormal.
      for (int64_t k = 0; k < pass.n_classes; ++k) {
        for (int lane = valid; lane < kL; ++lane) {
          block[k * kL + lane] = T(0);
        }
      }
    }
    if (pass.scale != nullptr) {
      for (int lane = 0; lane < valid; ++lane) {
        scale[lane] = pass.scale[start + i + lane];
      }
    }
    if (pass.variance != nullptr) {
      T* variance = pass.variance + (start + i) * pass.variance_stride;
      for (int lane = 0; lane < valid; ++lane) {
        T& v = variance[lane * pass.variance_stride];
        if (pass.moves) {
          v -= pass.beta * (columns[i + lane] * columns[i + lane]);
        }
        utilities[lane] = v;
      }
#pragma omp simd
      for (int lane = 0; lane < kL; ++lane) {
        link[lane] = mean_field(utilities[lane], pass.kappa);
      }
      utility_block_of_kind<true>(pass.kind, block, pass.n_classes, link, scale, utilities);
    } else {
      utility_block_of_kind<false>(pass.kind, block, pass.n_classes, link, scale, utilities);
    }
    const bool* taken = pass.taken + (start + i) * pass.taken_stride;
    for (int lane = 0; lane < valid; ++lane) {
      if (!taken[lane * pass.taken_stride] && (best.index < 0 || replaces(double(utilities[lane]), best.utility))) {
        best = {start + i + lane, double(utilities[lane])};
      }
    }
  }
  return best;
}

// One plain function per pair of dtypes, since clones need one.
#define LAPAL_SELECTION_KERNEL(T, S)                                                                           \
  LAPAL_CLONES Best selection_step_kernel(const Pass<T, S>& pass, int64_t start, int64_t rows, int64_t padded, \
                                          T* scratch) {                                                        \
    return selection_tile(pass, start, rows, padded, scratch);                                                 \
  }
LAPAL_SELECTION_KERNEL(float, float)
LAPAL_SELECTION_KERNEL(float, double)
LAPAL_SELECTION_KERNEL(float, Bfloat16Bits)
LAPAL_SELECTION_KERNEL(float, Float16Bits)
LAPAL_SELECTION_KERNEL(double, float)
LAPAL_SELECTION_KERNEL(double, double)
LAPAL_SELECTION_KERNEL(double, Bfloat16Bits)
LAPAL_SELECTION_KERNEL(double, Float16Bits)
#undef LAPAL_SELECTION_KERNEL

template <class T, class S>
Best selection_step_impl(const Pass<T, S>& pass, int64_t n_rows) {
  const int64_t fitting = kTileBytes / (int64_t(sizeof(T)) * pass.n_classes) / kLanes<T> * kLanes<T>;
  const int64_t tile_rows = std::clamp<int64_t>(fitting, 2 * kLanes<T>, kMaxTileRows);
  const int64_t n_tiles = (n_rows + tile_rows - 1) / tile_rows;
  std::vector<Best> found(size_t(n_tiles), Best{-1, 0.0});
  std::atomic<bool> out_of_memory{false};
  torch::stable::parallel_for(0, n_tiles, 1, [&](int64_t begin, int64_t end) {
    const Scratch<T> scratch((pass.n_classes + 1) * tile_rows);
    if (!scratch) {
      out_of_memory = true;
      return;
    }
    for (int64_t tile = begin; tile < end; ++tile) {
      const int64_t start = tile * tile_rows;
      found[size_t(tile)] =
          selection_step_kernel(pass, start, std::min(tile_rows, n_rows - start), tile_rows, scratch.data());
    }
  });
  STD_TORCH_CHECK(!out_of_memory, kOp, ": out of memory");
  Best best{-1, -std::numeric_limits<double>::infinity()};
  for (const Best& candidate : found) {
    if (candidate.index >= 0 && (best.index < 0 || replaces(candidate.utility, best.utility))) {
      best = candidate;
    }
  }
  return best;
}

// Storage as plain bits, for the vector conversions of simd.h.
template <class S>
using Bits = std::conditional_t<std::is_same_v<S, torch::headeronly::BFloat16>, Bfloat16Bits,
                                std::conditional_t<std::is_same_v<S, torch::headeronly::Half>, Float16Bits, S>>;

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
  const Utility kind = parse_utility(kind_name, kOp);
  check_dim(pool, 2, kOp, "pool");
  check_dim(logits, 2, kOp, "logits");
  const int64_t n_rows = pool.size(0), n_features = pool.size(1), n_classes = logits.size(1);
  const ScalarType dtype = logits.scalar_type();
  check_shape(logits, {n_rows, kAnySize}, kOp, "logits");
  check_shape(u, {n_features}, kOp, "u");
  check_shape(offset, {}, kOp, "offset");
  check_shape(g, {n_classes}, kOp, "g");
  check_shape(beta, {}, kOp, "beta");
  check_shape(taken, {n_rows}, kOp, "taken");
  check_dtype(u, dtype, kOp, "u");
  check_dtype(offset, dtype, kOp, "offset");
  check_dtype(g, dtype, kOp, "g");
  check_dtype(beta, dtype, kOp, "beta");
  check_dtype(taken, ScalarType::Bool, kOp, "taken");
  STD_TORCH_CHECK(n_classes > 0, kOp, ": logits must have at least one class");
  if (variance.has_value()) {
    check_shape(*variance, {n_rows}, kOp, "variance");
    check_dtype(*variance, dtype, kOp, "variance");
  }
  STD_TORCH_CHECK(kind != Utility::variance || variance.has_value(), kOp, ": utility 'variance' needs variance");
  std::optional<Tensor> dense_scale;
  if (kind == Utility::gradient_norm) {
    STD_TORCH_CHECK(scale.has_value(), kOp, ": utility 'gradient_norm' needs scale");
    check_shape(*scale, {n_rows}, kOp, "scale");
    check_dtype(*scale, dtype, kOp, "scale");
    dense_scale = torch::stable::contiguous(*scale);
  }

  Tensor index = torch::stable::new_empty(logits, {}, ScalarType::Long);
  Tensor utility = torch::stable::new_empty(logits, {});
  const bool dense_rows = n_features <= 1 || pool.stride(1) == 1;
  const Tensor dense_pool = dense_rows ? pool : torch::stable::contiguous(pool);
  const Tensor dense_u = torch::stable::contiguous(u);
  const Tensor dense_g = torch::stable::contiguous(g);
  dispatch_floating(dtype, kOp, [&](auto compute) {
    using scalar_t = typename decltype(compute)::type;
    dispatch_storage(pool.scalar_type(), kOp, [&](auto storage) {
      using storage_t = typename decltype(storage)::type;
      Pass<scalar_t, Bits<storage_t>> pass{};
      pass.pool = reinterpret_cast<const Bits<storage_t>*>(dense_pool.const_data_ptr<storage_t>());
      pass.pool_stride = dense_pool.stride(0);
      pass.n_features = n_features;
      pass.u = dense_u.const_data_ptr<scalar_t>();
      pass.offset = *offset.const_data_ptr<scalar_t>();
      pass.g = dense_g.const_data_ptr<scalar_t>();
      pass.beta = *beta.const_data_ptr<scalar_t>();
      const bool no_column = all_zero<scalar_t>(dense_u) && pass.offset == scalar_t(0);
      const bool no_effect = all_zero<scalar_t>(dense_g) && (!variance.has_value() || pass.beta == scalar_t(0));
      pass.moves = !no_column && !no_effect;
      pass.logits = logits.mutable_data_ptr<scalar_t>();
      pass.row_stride = logits.stride(0);
      pass.class_stride = logits.stride(1);
      pass.n_classes = n_classes;
      if (variance.has_value()) {
        pass.variance = variance->mutable_data_ptr<scalar_t>();
        pass.variance_stride = variance->stride(0);
      }
      bool* taken_rows = taken.mutable_data_ptr<bool>();
      pass.taken = taken_rows;
      pass.taken_stride = taken.stride(0);
      pass.scale = dense_scale.has_value() ? dense_scale->const_data_ptr<scalar_t>() : nullptr;
      pass.kind = kind;
      pass.kappa = scalar_t(kappa);
      const Best best = selection_step_impl(pass, n_rows);
      if (best.index >= 0) {
        taken_rows[best.index * pass.taken_stride] = true;
      }
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
