// Predictive probabilities of many rows.
//
//   p_n = softmax(z_n / sqrt(1 + kappa v_n)), or softmax(z_n) without v.
//
// Shapes: logits z [N, C], variance v [N] -> [N, C].
//
// Layout: for few classes, rows are in lanes. A block of rows is transposed to [C][lane], its softmax is computed
// there, and it is transposed back. Logits may have any strides; class-major logits need no transposition. For many
// contiguous classes, classes are in lanes and rows stay in place: two transpositions would take longer than the
// softmax.
//
// Parallel over blocks of rows.
//
// Limit: one exponential per number, and for few classes two transpositions in the first-level cache.
#include "torch/arguments/predictive.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <optional>

#include "cpu/passes/row_block.h"
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

constexpr int64_t kManyClasses = 64;  // from here on, classes are in lanes

template <class T>
struct Rows {
  LogitRows<T> logits;
  const T* variance;  // null for the plugin link
  int64_t variance_stride;
  T kappa;
  T* probabilities;  // [N, C]
};

// Probabilities of one block in place.
template <class T>
LAPAL_HD void softmax_block(const T* factor, int64_t n_classes, T* block) {
  constexpr int kL = kLanes<T>;
  alignas(kBlockBytes) T link[kL];
  alignas(kBlockBytes) T best[kL];
  alignas(kBlockBytes) T total[kL];
#pragma omp simd
  for (int lane = 0; lane < kL; ++lane) {
    link[lane] = factor[lane];
    best[lane] = -__builtin_inff();
    total[lane] = T(0);
  }
  for (int64_t k = 0; k < n_classes; ++k) {
#pragma omp simd
    for (int lane = 0; lane < kL; ++lane) {
      const T value = block[k * kL + lane];
      best[lane] = value > best[lane] ? value : best[lane];
    }
  }
  for (int64_t k = 0; k < n_classes; ++k) {
#pragma omp simd
    for (int lane = 0; lane < kL; ++lane) {
      const T term = exp_nonpositive((block[k * kL + lane] - best[lane]) * link[lane]);
      block[k * kL + lane] = term;
      total[lane] += term;
    }
  }
#pragma omp simd
  for (int lane = 0; lane < kL; ++lane) {
    total[lane] = T(1) / total[lane];
  }
  for (int64_t k = 0; k < n_classes; ++k) {
#pragma omp simd
    for (int lane = 0; lane < kL; ++lane) {
      block[k * kL + lane] *= total[lane];
    }
  }
}

// Probabilities of one row whose classes are contiguous.
template <class T>
LAPAL_HD void softmax_row(const T* logits, T link, int64_t n_classes, T* out) {
  const T best = largest_in_row(logits, n_classes);
  T total = T(0);
#pragma omp simd reduction(+ : total)
  for (int64_t k = 0; k < n_classes; ++k) {
    const T term = exp_nonpositive((logits[k] - best) * link);
    out[k] = term;
    total += term;
  }
  const T inverse = T(1) / total;
#pragma omp simd
  for (int64_t k = 0; k < n_classes; ++k) {
    out[k] *= inverse;
  }
}

template <class T>
LAPAL_HD void predictive_blocks(const Rows<T>& rows, int64_t begin, int64_t end, T* block) {
  constexpr int kL = kLanes<T>;
  for (int64_t start = begin * kL; start < end * kL && start < rows.logits.n_rows; start += kL) {
    const int64_t valid = rows.logits.n_rows - start < kL ? rows.logits.n_rows - start : kL;
    alignas(kBlockBytes) T link[kL];
    if (rows.variance != nullptr) {
      read_values(rows.variance + start * rows.variance_stride, rows.variance_stride, valid, link);
    }
#pragma omp simd
    for (int lane = 0; lane < kL; ++lane) {
      link[lane] = rows.variance != nullptr ? mean_field(link[lane], rows.kappa) : T(1);
    }
    const T* logits = rows.logits.data + start * rows.logits.row_stride;
    T* out = rows.probabilities + start * rows.logits.n_classes;
    if (rows.logits.class_stride == 1 && rows.logits.n_classes >= kManyClasses) {
      for (int64_t lane = 0; lane < valid; ++lane) {
        softmax_row(logits + lane * rows.logits.row_stride, link[lane], rows.logits.n_classes,
                    out + lane * rows.logits.n_classes);
      }
      continue;
    }
    read_rows(rows.logits, start, valid, block);
    softmax_block(link, rows.logits.n_classes, block);
    write_rows(block, rows.logits.n_classes, valid, out);
  }
}

LAPAL_CLONES void predictive_kernel(const Rows<float>& rows, int64_t begin, int64_t end, float* block) {
  predictive_blocks(rows, begin, end, block);
}

LAPAL_CLONES void predictive_kernel(const Rows<double>& rows, int64_t begin, int64_t end, double* block) {
  predictive_blocks(rows, begin, end, block);
}

template <class T>
void predictive_impl(const Rows<T>& rows) {
  const int64_t n_blocks = (rows.logits.n_rows + kLanes<T> - 1) / kLanes<T>;
  parallel_tiles(
      n_blocks, grain_of_rows<T>(rows.logits.n_classes), kOp,
      [&] { return Scratch<T>(rows.logits.n_classes * kLanes<T>); },
      [&](int64_t begin, int64_t end, const Scratch<T>& block) { predictive_kernel(rows, begin, end, block.data()); });
}

Tensor predictive_cpu(const Tensor& logits, const std::optional<Tensor>& variance, double kappa) {
  const PredictiveArguments call = check_predictive(logits, variance);
  const int64_t n_rows = call.n_rows, n_classes = call.n_classes;
  Tensor probabilities = torch::stable::new_empty(logits, {n_rows, n_classes});
  if (n_rows == 0 || n_classes == 0) {
    return probabilities;
  }
  dispatch_floating(call.dtype, kOp, [&](auto tag) {
    using scalar_t = typename decltype(tag)::type;
    Rows<scalar_t> rows{};
    rows.logits = rows_of_logits<scalar_t>(logits);
    if (variance.has_value()) {
      rows.variance = variance->const_data_ptr<scalar_t>();
      rows.variance_stride = variance->stride(0);
    }
    rows.kappa = scalar_t(kappa);
    rows.probabilities = probabilities.mutable_data_ptr<scalar_t>();
    predictive_impl(rows);
  });
  return probabilities;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(lapal_ext, CPU, m) {
  m.impl("predictive", TORCH_BOX(&predictive_cpu));
}
