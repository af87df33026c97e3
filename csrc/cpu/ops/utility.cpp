// Utility of a label for each row, from its predictive distribution.
//
//   utility of softmax(z_n / sqrt(1 + kappa v_n)), or of softmax(z_n) without v; formulas in shared/utilities.h.
//
// Shapes: logits z [N, C], variance v [N], scale [N] -> [N].
//
// Layout: rows are in lanes. A block of rows is transposed to [C][lane]; then one pass finds the largest logit and one
// computes the exponentials and their sums. Logits may have any strides; class-major logits need no transposition.
//
// Parallel over blocks of rows.
//
// Limit: one exponential and one transposition in the first-level cache per logit.
#include "torch/arguments/utility.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <optional>
#include <string>

#include "cpu/passes/row_block.h"
#include "cpu/passes/utility_block.h"
#include "cpu/simd/lanes.h"
#include "cpu/simd/scratch.h"
#include "shared/likelihood.h"
#include "torch/dispatch.h"
#include "torch/parallel_tiles.h"
#include "torch/rows.h"

namespace {

using namespace lapal_ext;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

template <class T>
struct Rows {
  LogitRows<T> logits;
  const T* variance;  // null for the plugin link
  int64_t variance_stride;
  const T* scale;  // null unless the utility needs it
  int64_t scale_stride;
  Utility kind;
  T kappa;
  T* utilities;  // [N]
};

template <class T>
LAPAL_HD void utility_blocks(const Rows<T>& rows, int64_t begin, int64_t end, T* block) {
  constexpr int kL = kLanes<T>;
  for (int64_t start = begin * kL; start < end * kL && start < rows.logits.n_rows; start += kL) {
    const int64_t valid = rows.logits.n_rows - start < kL ? rows.logits.n_rows - start : kL;
    alignas(kBlockBytes) T link[kL];
    alignas(kBlockBytes) T scale[kL] = {};
    alignas(kBlockBytes) T utilities[kL];
    if (rows.scale != nullptr) {
      read_values(rows.scale + start * rows.scale_stride, rows.scale_stride, valid, scale);
    }
    if (rows.variance != nullptr) {
      read_values(rows.variance + start * rows.variance_stride, rows.variance_stride, valid, utilities);
    }
    if (needs_of(rows.kind).logits) {
      read_rows(rows.logits, start, valid, block);
      if (rows.variance != nullptr) {
#pragma omp simd
        for (int lane = 0; lane < kL; ++lane) {
          link[lane] = mean_field(utilities[lane], rows.kappa);
        }
        utility_block_of_kind<true>(rows.kind, block, rows.logits.n_classes, link, scale, utilities);
      } else {
        utility_block_of_kind<false>(rows.kind, block, rows.logits.n_classes, link, scale, utilities);
      }
    }
    for (int64_t lane = 0; lane < valid; ++lane) {
      rows.utilities[start + lane] = utilities[lane];
    }
  }
}

LAPAL_CLONES void utility_kernel(const Rows<float>& rows, int64_t begin, int64_t end, float* block) {
  utility_blocks(rows, begin, end, block);
}

LAPAL_CLONES void utility_kernel(const Rows<double>& rows, int64_t begin, int64_t end, double* block) {
  utility_blocks(rows, begin, end, block);
}

template <class T>
void utility_impl(const Rows<T>& rows) {
  const int64_t n_blocks = (rows.logits.n_rows + kLanes<T> - 1) / kLanes<T>;
  parallel_tiles(
      n_blocks, grain_of_rows<T>(rows.logits.n_classes), kOp,
      [&] { return Scratch<T>(rows.logits.n_classes * kLanes<T>); },
      [&](int64_t begin, int64_t end, const Scratch<T>& block) { utility_kernel(rows, begin, end, block.data()); });
}

Tensor utility_cpu(const Tensor& logits, const std::optional<Tensor>& variance, const std::optional<Tensor>& scale,
                   const std::string& kind_name, double kappa) {
  const UtilityArguments call = check_utility(logits, variance, scale, kind_name);
  Tensor utilities = torch::stable::new_empty(logits, {call.n_rows});
  if (call.n_rows == 0) {
    return utilities;
  }
  dispatch_floating(call.dtype, kOp, [&](auto tag) {
    using scalar_t = typename decltype(tag)::type;
    Rows<scalar_t> rows{};
    rows.logits = rows_of_logits<scalar_t>(logits);
    if (variance.has_value()) {
      rows.variance = variance->const_data_ptr<scalar_t>();
      rows.variance_stride = variance->stride(0);
    }
    if (needs_of(call.kind).scale) {
      rows.scale = scale->const_data_ptr<scalar_t>();
      rows.scale_stride = scale->stride(0);
    }
    rows.kind = call.kind;
    rows.kappa = scalar_t(kappa);
    rows.utilities = utilities.mutable_data_ptr<scalar_t>();
    utility_impl(rows);
  });
  return utilities;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(lapal_ext, CPU, m) {
  m.impl("utility", TORCH_BOX(&utility_cpu));
}
