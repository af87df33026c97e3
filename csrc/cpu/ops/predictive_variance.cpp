// Variance of the logits of many rows.
//
//   v_n = phi_n^T Sigma phi_n = sum_j phi_nj sum_{i <= j} phi_ni U_ij,  U_ij = Sigma_ij + Sigma_ji, U_jj = Sigma_jj.
//
// Shapes: features [N, D], covariance [D, D] -> [N].
//
// Layout: the quadratic form depends on Sigma_ij + Sigma_ji only. So the upper triangle U has half the arithmetic of
// (Phi Sigma) * Phi. U is packed once, in panels [D / panel][row][panel] that are two vectors wide (cpu/gemm/tile.h);
// each panel ends at its last nonzero row. A group of rows of features is copied to a buffer that is padded with zeros,
// so there is one layout for all inputs and no tail. The sums of a group over one panel stay in registers, and are
// multiplied by the features again at the end of the panel. Nothing of size N x D is stored.
//
// For up to kFewRows rows, packing costs more than it saves: they take dot products with the rows of Sigma in place.
//
// Parallel over groups of rows. The size of a group depends on the registers of the machine. The order of every sum
// depends on D only (one order for few rows, one for many), so equal rows have equal variances for any number of
// threads.
//
// Limit: arithmetic, N D^2 / 2 multiply-adds.
#include "torch/arguments/predictive_variance.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>

#include "cpu/gemm/dots.h"
#include "cpu/gemm/packing.h"
#include "cpu/gemm/tile.h"
#include "cpu/simd/lanes.h"
#include "cpu/simd/scratch.h"
#include "torch/dispatch.h"
#include "torch/parallel_tiles.h"

namespace {

using namespace lapal_ext;
using torch::stable::Tensor;

constexpr int64_t kFewRows = 64;         // up to here, packing the triangle costs more than it saves
constexpr int64_t kGrainWork = 1 << 17;  // multiply-adds per worker; with fewer, starting the worker costs more

// Offset of a panel in the packed triangle: panels 0, 1, ... have 1, 2, ... times kPanel rows.
template <class T>
constexpr int64_t panel_offset(int64_t panel) {
  return panel * (panel + 1) / 2 * kPanel<T> * kPanel<T>;
}

template <class T>
struct Form {
  Matrix<T> rows;
  int64_t n_features;
  const T* triangle;  // packed
  T* variance;        // [N]
};

// Rows [i, i + lanes) of one panel. Both sums are read along rows of Sigma: column reads took four times as long.
template <class T>
LAPAL_HD void pack_block(const T* covariance, int64_t size, int64_t i, int64_t first, T* to) {
  constexpr int kL = kLanes<T>;
  const int64_t width = std::min<int64_t>(kPanel<T>, size - first);
  const int64_t height = std::min<int64_t>(kL, size - i);
  alignas(kBlockBytes) T mirrored[kL][kPanel<T>] = {};
  for (int64_t j = 0; j < width; ++j) {
    const T* row = covariance + (first + j) * size + i;
    for (int64_t k = 0; k < height; ++k) {
      mirrored[k][j] = row[k];
    }
  }
  for (int64_t k = 0; k < kL; ++k) {
    // Only the columns from the diagonal on; rows after the last are zero.
    const int64_t diagonal = std::max<int64_t>(i + k - first, 0);
    std::fill(to + k * kPanel<T>, to + (k + 1) * kPanel<T>, T(0));
    if (k < height) {
      const T* row = covariance + (i + k) * size + first;
#pragma omp simd
      for (int64_t j = diagonal; j < width; ++j) {
        to[k * kPanel<T> + j] = row[j] + mirrored[k][j];
      }
      if (i + k >= first) {
        to[k * kPanel<T> + diagonal] = row[diagonal];
      }
    }
  }
}

// Panels [begin, end) of the packed triangle.
template <class T>
LAPAL_HD void pack_panels(const T* covariance, int64_t size, int64_t begin, int64_t end, T* triangle) {
  for (int64_t panel = begin; panel < end; ++panel) {
    const int64_t first = panel * kPanel<T>;
    T* to = triangle + panel_offset<T>(panel);
    for (int64_t i = 0; i < first + kPanel<T>; i += kLanes<T>) {
      pack_block(covariance, size, i, first, to + i * kPanel<T>);
    }
  }
}

// variance[row] += sum_j phi_j sum_i phi_i U_ij over one panel, which has `length` rows.
template <int kRows, class T>
LAPAL_HD void add_panel(const T* group, const T* panel, int64_t length, T (*variance)[kLanes<T>]) {
  constexpr int kL = kLanes<T>;
  static_assert(kDepth % kPanel<T> == 0);  // the features of a panel lie in one chunk
  alignas(kBlockBytes) T tile[kRows * kPanel<T>];
  multiply_group<kRows>(group, panel, length, tile);
  const int64_t first = length - kPanel<T>;
  const T* features = group + group_offset<kRows, T>(first) + first % kDepth;
  for (int row = 0; row < kRows; ++row) {
    const T* sums = tile + row * kPanel<T>;
    const T* own = features + row * kGroupStride<T>;
#pragma omp simd
    for (int lane = 0; lane < kL; ++lane) {
      variance[row][lane] += sums[lane] * own[lane];
      variance[row][lane] += sums[kL + lane] * own[kL + lane];
    }
  }
}

// Groups [begin, end) of kRows rows; `group` holds `size` numbers.
template <int kRows, class T>
LAPAL_HD void variance_groups(const Form<T>& form, int64_t begin, int64_t end, int64_t size, T* group) {
  std::fill(group, group + size, T(0));
  for (int64_t index = begin; index < end; ++index) {
    const int64_t first = index * kRows;
    for (int64_t start = 0; start < form.n_features; start += kDepth) {
      const int64_t depth = std::min(kDepth, form.n_features - start);
      pack_group<kRows>(form.rows, first, start, depth, group + group_offset<kRows, T>(start));
    }
    alignas(kBlockBytes) T variance[kRows][kLanes<T>] = {};
    for (int64_t panel = 0; panel * kPanel<T> < form.n_features; ++panel) {
      add_panel<kRows>(group, form.triangle + panel_offset<T>(panel), (panel + 1) * kPanel<T>, variance);
    }
    for (int64_t row = 0; row < std::min<int64_t>(kRows, form.rows.n_rows - first); ++row) {
      form.variance[first + row] = fold(variance[row]);
    }
  }
}

// A few rows, with Sigma in place. Features and Sigma are contiguous.
template <class T>
LAPAL_HD void variance_rows(const Form<T>& form, const T* covariance, int64_t begin, int64_t end) {
  const int64_t size = form.n_features;
  for (int64_t n = begin; n < end; ++n) {
    const T* row = form.rows.data + n * size;
    double sum = 0.0;
    for (int64_t j = 0; j < size; ++j) {
      sum += double(row[j]) * double(dot(covariance + j * size, row, size));
    }
    form.variance[n] = T(sum);
  }
}

#define LAPAL_VARIANCE_KERNELS(T)                                                                                  \
  LAPAL_CLONES void pack_kernel(const T* covariance, int64_t size, int64_t begin, int64_t end, T* triangle) {      \
    pack_panels(covariance, size, begin, end, triangle);                                                           \
  }                                                                                                                \
  LAPAL_CLONES void few_rows_kernel(const Form<T>& form, const T* covariance, int64_t begin, int64_t end) {        \
    variance_rows(form, covariance, begin, end);                                                                   \
  }                                                                                                                \
  LAPAL_AVX512 void avx512_kernel(const Form<T>& form, int64_t begin, int64_t end, int64_t size, T* group) {       \
    variance_groups<kAvx512Rows>(form, begin, end, size, group);                                                   \
  }                                                                                                                \
  LAPAL_NOT_AVX512 void portable_kernel(const Form<T>& form, int64_t begin, int64_t end, int64_t size, T* group) { \
    variance_groups<kPortableRows>(form, begin, end, size, group);                                                 \
  }
LAPAL_VARIANCE_KERNELS(float)
LAPAL_VARIANCE_KERNELS(double)
#undef LAPAL_VARIANCE_KERNELS

template <class T>
void predictive_variance_impl(Form<T> form, const T* covariance) {
  const int64_t n_panels = (form.n_features + kPanel<T> - 1) / kPanel<T>;
  const Scratch<T> triangle(panel_offset<T>(n_panels));
  STD_TORCH_CHECK(bool(triangle), kOp, ": out of memory");
  form.triangle = triangle.data();
  const int64_t packed_work = panel_offset<T>(n_panels) / std::max<int64_t>(n_panels, 1);
  torch::stable::parallel_for(0, n_panels, kGrainWork / (packed_work + 1) + 1, [&](int64_t begin, int64_t end) {
    pack_kernel(covariance, form.n_features, begin, end, triangle.data());
  });
  const int rows = rows_of_group();
  const int64_t size = group_size<T>(rows, form.n_features);
  const int64_t n_groups = (form.rows.n_rows + rows - 1) / rows;
  const int64_t grain = kGrainWork / (rows * form.n_features * form.n_features / 2 + 1) + 1;
  parallel_tiles(
      n_groups, grain, kOp, [&] { return Scratch<T>(size); },
      [&](int64_t begin, int64_t end, const Scratch<T>& group) {
        if (has_avx512()) {
          avx512_kernel(form, begin, end, size, group.data());
        } else {
          portable_kernel(form, begin, end, size, group.data());
        }
      });
}

Tensor predictive_variance_cpu(const Tensor& features, const Tensor& covariance) {
  const PredictiveVarianceArguments call = check_predictive_variance(features, covariance);
  const int64_t n_rows = call.n_rows, n_features = call.n_features;
  const bool few = n_rows <= kFewRows;
  const Tensor dense_covariance = torch::stable::contiguous(covariance);
  const Tensor dense_features = few ? torch::stable::contiguous(features) : features;
  Tensor variance = torch::stable::new_empty(features, {n_rows});
  dispatch_floating(call.dtype, kOp, [&](auto tag) {
    using scalar_t = typename decltype(tag)::type;
    const Form<scalar_t> form{matrix_of<scalar_t>(dense_features), n_features, nullptr,
                              variance.mutable_data_ptr<scalar_t>()};
    const scalar_t* sigma = dense_covariance.const_data_ptr<scalar_t>();
    if (few) {
      const int64_t grain = kGrainWork / (n_features * n_features + 1) + 1;
      torch::stable::parallel_for(0, n_rows, grain,
                                  [&](int64_t begin, int64_t end) { few_rows_kernel(form, sigma, begin, end); });
    } else {
      predictive_variance_impl(form, sigma);
    }
  });
  return variance;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(lapal_ext, CPU, m) {
  m.impl("predictive_variance", TORCH_BOX(&predictive_variance_cpu));
}
