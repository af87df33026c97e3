// How much a label of each row would tell, from its predictive alone.
//
//   utility of softmax(z_n / sqrt(1 + kappa v_n)), or of softmax(z_n) without v; formulas in shared/likelihood.h.
//
// Shapes: logits z [N, C], variance v [N], scale [N] -> [N].
//
// Layout: rows lie in lanes; a block of rows is brought into [C][lane] and passed over twice: the largest, then the
// exponentials and what the utility sums of them. Logits may have any strides; class-major ones need no transposition.
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

namespace {

using namespace lapal_ext;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

template <class T>
struct Rows {
  const T* logits;
  int64_t row_stride;
  int64_t class_stride;
  int64_t n_rows;
  int64_t n_classes;
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
  for (int64_t start = begin * kL; start < end * kL && start < rows.n_rows; start += kL) {
    const int64_t valid = rows.n_rows - start < kL ? rows.n_rows - start : kL;
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
      read_rows(rows.logits + start * rows.row_stride, rows.row_stride, rows.class_stride, rows.n_classes, valid,
                block);
      if (rows.variance != nullptr) {
#pragma omp simd
        for (int lane = 0; lane < kL; ++lane) {
          link[lane] = mean_field(utilities[lane], rows.kappa);
        }
        utility_block_of_kind<true>(rows.kind, block, rows.n_classes, link, scale, utilities);
      } else {
        utility_block_of_kind<false>(rows.kind, block, rows.n_classes, link, scale, utilities);
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
  const int64_t n_blocks = (rows.n_rows + kLanes<T> - 1) / kLanes<T>;
  parallel_tiles(
      n_blocks, grain_of_rows<T>(rows.n_classes), kOp, [&] { return Scratch<T>(rows.n_classes * kLanes<T>); },
      [&](int64_t begin, int64_t end, const Scratch<T>& block) { utility_kernel(rows, begin, end, block.data()); });
}

Tensor utility_cpu(const Tensor& logits, const std::optional<Tensor>& variance, const std::optional<Tensor>& scale,
                   const std::string& kind_name, double kappa) {
  const UtilityArguments call = check_utility(logits, variance, scale, kind_name);
  const int64_t n_rows = call.n_rows, n_classes = call.n_classes;
  Tensor utilities = torch::stable::new_empty(logits, {n_rows});
  if (n_rows == 0) {
    return utilities;
  }
  dispatch_floating(call.dtype, kOp, [&](auto tag) {
    using scalar_t = typename decltype(tag)::type;
    Rows<scalar_t> rows{};
    rows.logits = logits.const_data_ptr<scalar_t>();
    rows.row_stride = logits.stride(0);
    rows.class_stride = logits.stride(1);
    rows.n_rows = n_rows;
    rows.n_classes = n_classes;
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
