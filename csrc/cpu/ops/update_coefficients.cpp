// The recursion that absorbs b labels into M hypotheses, in terms of their gram matrix only.
//
// For observation t, with column c and variance v of the present gram matrix:
//
//   g_t = a (e_y - softmax(f_t));  f_j += c_j g_t for j >= t;  s'_t = curvature(f_t);  beta_t = s'_t / (1 + s'_t v)
//   T_jt = beta_t c_j and gram_jk -= beta_t c_j c_k for j, k > t
//
// At the end, T^T H = g.
//
// Shapes: gram [M, b, b], logits [M, b, C], targets [M, b] -> H [M, b, C], T [M, b, b], beta [M, b], s' [M, b].
//
// Layout: all numbers are float64. Row t of the work matrix is column t of the lower triangle of the gram matrix, [t,
// b), so the downdate runs along contiguous memory. It runs in full blocks; surplus values are never read. f_t is
// computed when it is needed, as logits_t + sum over s < t of c_t^(s) g_s, with the classes in registers. Updating
// every later row at each t would write b^2 C numbers instead.
//
// Parallel over hypotheses. One hypothesis is a sequential chain and runs on one thread.
//
// Limit: b^2 C multiply-adds (f and H), b^3 / 6 (gram), and about 6 passes of C exponentials per line search.
#include "cpu/ops/update_coefficients.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <limits>
#include <string>
#include <tuple>

#include "cpu/passes/line_search.h"
#include "cpu/simd/lanes.h"
#include "cpu/simd/scratch.h"
#include "torch/arguments/update_coefficients.h"
#include "torch/dispatch.h"
#include "torch/parallel_tiles.h"

namespace {

using namespace lapal_ext;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr int kL = kLanes<double>;
constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();

// One hypothesis in float64. Rows of classes are padded to full blocks, with logits of -inf.
struct Work {
  int64_t batch_size;
  int64_t n_classes;
  int64_t row_size;  // n_classes rounded up to full blocks
  double slack;      // kPsdSlack * eps of the inputs' dtype
  UpdateRule rule;
  const int64_t* targets;  // [b]
  int64_t gram_stride;     // b rounded up to full blocks
  double* gram;            // [b, gram_stride], row t is column t of the lower triangle; beta_t c above the diagonal
  double* logits;          // [b, row_size]
  double* steps;           // [b, row_size], becomes H
  double* beta;            // [b]
  double* weights;         // [b]
  double* variances;       // [b], before the batch
  double* residual;        // [row_size]
  double* terms;           // [row_size]
};

// The numbers behind the pointers of one Work.
struct Memory {
  Memory(int64_t b, int64_t row_size, int64_t gram_stride)
      : gram(b * gram_stride), logits(b * row_size), steps(b * row_size), scalars(3 * b), rows(2 * row_size) {}
  explicit operator bool() const {
    return gram && logits && steps && scalars && rows;
  }

  Scratch<double> gram, logits, steps, scalars, rows;
};

// Lanes of kBlocks blocks. Clang would make a loop over the blocks, and keep their sums in memory.
#if defined(__clang__)
#define LAPAL_ALL_BLOCKS _Pragma("omp simd simdlen(kBlocks * kL)")
#else
#define LAPAL_ALL_BLOCKS _Pragma("omp simd")
#endif

// out += sign * sum_j coefficients[j * stride] * rows[j], for kBlocks blocks. The sums stay in registers. Few blocks
// have several chains of sums, so that multiply-adds do not wait for each other.
template <int kBlocks>
LAPAL_HD void add_blocks(const double* coefficients, int64_t stride, double sign, const double* rows, int64_t count,
                         int64_t row_size, double* out) {
  constexpr int kChains = 8 / kBlocks;
  double sums[kChains][kBlocks * kL];
  LAPAL_UNROLL
  for (int chain = 0; chain < kChains; ++chain) {
    LAPAL_ALL_BLOCKS
    for (int lane = 0; lane < kBlocks * kL; ++lane) {
      sums[chain][lane] = chain == 0 ? out[lane] : 0.0;
    }
  }
  int64_t j = 0;
  for (; j + kChains <= count; j += kChains) {
    LAPAL_UNROLL
    for (int chain = 0; chain < kChains; ++chain) {
      const double factor = sign * coefficients[(j + chain) * stride];
      const double* row = rows + (j + chain) * row_size;
      LAPAL_ALL_BLOCKS
      for (int lane = 0; lane < kBlocks * kL; ++lane) {
        sums[chain][lane] += factor * row[lane];
      }
    }
  }
  for (; j < count; ++j) {
    const double factor = sign * coefficients[j * stride];
    LAPAL_ALL_BLOCKS
    for (int lane = 0; lane < kBlocks * kL; ++lane) {
      sums[0][lane] += factor * rows[j * row_size + lane];
    }
  }
  LAPAL_UNROLL
  for (int chain = 1; chain < kChains; ++chain) {
    LAPAL_ALL_BLOCKS
    for (int lane = 0; lane < kBlocks * kL; ++lane) {
      sums[0][lane] += sums[chain][lane];
    }
  }
  LAPAL_ALL_BLOCKS
  for (int lane = 0; lane < kBlocks * kL; ++lane) {
    out[lane] = sums[0][lane];
  }
}
#undef LAPAL_ALL_BLOCKS

// The same over all blocks of a row.
LAPAL_HD void add_rows(const double* coefficients, int64_t stride, double sign, const double* rows, int64_t count,
                       int64_t row_size, double* out) {
  int64_t k = 0;
  for (; k + 4 * kL <= row_size; k += 4 * kL) {
    add_blocks<4>(coefficients, stride, sign, rows + k, count, row_size, out + k);
  }
  if (k + 2 * kL <= row_size) {
    add_blocks<2>(coefficients, stride, sign, rows + k, count, row_size, out + k);
    k += 2 * kL;
  }
  if (k < row_size) {
    add_blocks<1>(coefficients, stride, sign, rows + k, count, row_size, out + k);
  }
}

LAPAL_HD double weight_of(const Work& work, const double* logits) {
  switch (work.rule.curvature) {
    case Curvature::gaussian:
      return 1.0;
    case Curvature::categorical:
      return curvature_weight(losing_terms(logits, work.row_size, argmax(logits, work.n_classes), work.terms));
  }
  return kNaN;
}

LAPAL_HD double step_length(const Work& work, const double* logits, double variance, int64_t target) {
  const double gamma = work.rule.gamma;
  switch (work.rule.step) {
    case Step::newton:
      return gamma / (1.0 + weight_of(work, logits) * variance);
    case Step::line_search:
      return line_search(logits, variance, work.residual, work.row_size, target, gamma, work.terms);
  }
  return kNaN;
}

LAPAL_CLONES void update_coefficients_kernel(const Work& work) {
  const int64_t b = work.batch_size, row_size = work.row_size, gram_stride = work.gram_stride;
  for (int64_t t = 0; t < b; ++t) {
    work.variances[t] = work.gram[t * gram_stride + t];
  }
  for (int64_t t = 0; t < b; ++t) {
    double* f = work.logits + t * row_size;
    double* step = work.steps + t * row_size;
    double* column = work.gram + t * gram_stride;
    const int64_t target = work.targets[t];
    add_rows(work.gram + t, gram_stride, 1.0, work.steps, t, row_size, f);

    const double variance = column[t] >= -work.slack * work.variances[t] ? column[t] : kNaN;
    residual(f, work.n_classes, row_size, target, work.terms, work.residual);
    const double length = step_length(work, f, variance, target);
#pragma omp simd
    for (int64_t k = 0; k < row_size; ++k) {
      step[k] = length * work.residual[k];
      f[k] += column[t] * step[k];
    }
    const double weight = weight_of(work, f);
    const double scale = 1.0 + weight * variance;
    const double beta = scale > 0.0 ? weight / scale : kNaN;
    work.weights[t] = weight;
    work.beta[t] = beta;
    for (int64_t k = t + 1; k < b; ++k) {
      double* row = work.gram + k * gram_stride;
      const double factor = column[k];
      for (int64_t block = k / kL * kL; block < gram_stride; block += kL) {
#pragma omp simd
        for (int lane = 0; lane < kL; ++lane) {
          row[block + lane] -= (beta * column[block + lane]) * factor;
        }
      }
    }
  }
  for (int64_t t = 0; t < b; ++t) {
    double* column = work.gram + t * gram_stride;
    for (int64_t j = t + 1; j < b; ++j) {
      column[j] *= work.beta[t];
    }
  }
  for (int64_t t = b - 2; t >= 0; --t) {
    add_rows(work.gram + t * gram_stride + t + 1, 1, -1.0, work.steps + (t + 1) * row_size, b - 1 - t, row_size,
             work.steps + t * row_size);
  }
}

template <class T>
void absorb(const Hypotheses<T>& hypotheses, int64_t m, Work& work) {
  const int64_t b = work.batch_size, n_classes = work.n_classes;
  const T* gram = hypotheses.gram + m * b * b;
  for (int64_t t = 0; t < b; ++t) {
    double* column = work.gram + t * work.gram_stride;
    std::fill(column, column + work.gram_stride, 0.0);
    for (int64_t j = t; j < b; ++j) {
      column[j] = double(gram[j * b + t]);
    }
    double* row = work.logits + t * work.row_size;
    const T* logits = hypotheses.logits + (m * b + t) * n_classes;
    std::copy(logits, logits + n_classes, row);
    std::fill(row + n_classes, row + work.row_size, -std::numeric_limits<double>::infinity());
  }
  work.targets = hypotheses.targets + m * b;
  update_coefficients_kernel(work);
  T* triangle = hypotheses.triangle + m * b * b;
  for (int64_t t = 0; t < b; ++t) {
    for (int64_t j = 0; j < t; ++j) {
      triangle[t * b + j] = T(work.gram[j * work.gram_stride + t]);
    }
    triangle[t * b + t] = T(1);
    std::fill(triangle + t * b + t + 1, triangle + (t + 1) * b, T(0));
    T* coefficients = hypotheses.coefficients + (m * b + t) * n_classes;
    for (int64_t k = 0; k < n_classes; ++k) {
      coefficients[k] = T(work.steps[t * work.row_size + k]);
    }
    hypotheses.beta[m * b + t] = T(work.beta[t]);
    hypotheses.weights[m * b + t] = T(work.weights[t]);
  }
}

}  // namespace

namespace lapal_ext {

template <class T>
void find_coefficients(const Hypotheses<T>& hypotheses, const UpdateRule& rule) {
  if (hypotheses.count == 0 || hypotheses.batch_size == 0) {
    return;
  }
  const int64_t b = hypotheses.batch_size, row_size = round_up(hypotheses.n_classes, kL), gram_stride = round_up(b, kL);
  const auto make_memory = [&] { return Memory(b, row_size, gram_stride); };
  parallel_tiles(hypotheses.count, 1, kOp, make_memory, [&](int64_t begin, int64_t end, const Memory& memory) {
    Work work{};
    work.batch_size = b;
    work.n_classes = hypotheses.n_classes;
    work.row_size = row_size;
    work.rule = rule;
    work.slack = kPsdSlack * double(std::numeric_limits<T>::epsilon());
    work.gram_stride = gram_stride;
    work.gram = memory.gram.data();
    work.logits = memory.logits.data();
    work.steps = memory.steps.data();
    work.beta = memory.scalars.data();
    work.weights = memory.scalars.data() + b;
    work.variances = memory.scalars.data() + 2 * b;
    work.residual = memory.rows.data();
    work.terms = memory.rows.data() + row_size;
    for (int64_t m = begin; m < end; ++m) {
      absorb(hypotheses, m, work);
    }
  });
}

template void find_coefficients(const Hypotheses<float>&, const UpdateRule&);
template void find_coefficients(const Hypotheses<double>&, const UpdateRule&);

}  // namespace lapal_ext

namespace {

std::tuple<Tensor, Tensor, Tensor, Tensor> update_coefficients_cpu(const Tensor& gram, const Tensor& logits,
                                                                   const Tensor& targets, double gamma,
                                                                   const std::string& step,
                                                                   const std::string& curvature) {
  const UpdateCoefficientsArguments call = check_update_coefficients(gram, logits, targets, gamma, step, curvature);
  const int64_t n_hypotheses = call.n_hypotheses, batch_size = call.batch_size, n_classes = call.n_classes;
  const Tensor dense_targets = torch::stable::contiguous(targets);
  check_index_range(dense_targets, n_classes, kOp, "targets");

  Tensor coefficients = torch::stable::new_empty(gram, {n_hypotheses, batch_size, n_classes});
  Tensor triangle = torch::stable::new_empty(gram, {n_hypotheses, batch_size, batch_size});
  Tensor beta = torch::stable::new_empty(gram, {n_hypotheses, batch_size});
  Tensor weights = torch::stable::new_empty(gram, {n_hypotheses, batch_size});
  const Tensor dense_gram = torch::stable::contiguous(gram);
  const Tensor dense_logits = torch::stable::contiguous(logits);
  dispatch_floating(call.dtype, kOp, [&](auto tag) {
    using scalar_t = typename decltype(tag)::type;
    const Hypotheses<scalar_t> hypotheses{n_hypotheses,
                                          batch_size,
                                          n_classes,
                                          dense_gram.const_data_ptr<scalar_t>(),
                                          dense_logits.const_data_ptr<scalar_t>(),
                                          dense_targets.const_data_ptr<int64_t>(),
                                          coefficients.mutable_data_ptr<scalar_t>(),
                                          triangle.mutable_data_ptr<scalar_t>(),
                                          beta.mutable_data_ptr<scalar_t>(),
                                          weights.mutable_data_ptr<scalar_t>()};
    find_coefficients(hypotheses, call.rule);
  });
  return {coefficients, triangle, beta, weights};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(lapal_ext, CPU, m) {
  m.impl("update_coefficients", TORCH_BOX(&update_coefficients_cpu));
}
