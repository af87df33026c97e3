// Gain in coverage of many rows, from kernel values in memory.
//
//   gain_j = sum_e weight_e max(0, kernel_je - covered_e)
//
// Shapes: kernel [M, E], weight [E], covered [E] -> [M] in double.
//
// Layout: references are in lanes. Rows that are contiguous are read in place, at any distance; others are copied
// first. Eight rows that are far apart are read in turn, a vector of each, because the processor prefetches several
// streams of reads at once: one stream took twice as long as a plain sum of the kernel, and eight take as long. They
// also share the loads of the weights. A lane adds the gains of one block of references; the lanes of a row are folded
// once per block, and the sums of the blocks are added in order, in double.
//
// Parallel over rows. The order of every sum depends on E only, so equal rows have equal gains for any number of rows
// and threads.
//
// Limit: memory, one read of the kernel.
#include "torch/arguments/coverage_gain.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>

#include "cpu/gemm/dots.h"
#include "cpu/simd/lanes.h"
#include "torch/dispatch.h"

namespace {

using namespace lapal_ext;
using torch::stable::Tensor;

constexpr int kStreams = 8;          // rows that are read in turn
constexpr int64_t kBlock = 1024;     // references of one block: their weights stay in the first-level cache
constexpr int64_t kGrain = 1 << 15;  // elements per worker; with fewer, starting the worker costs more

template <class T>
struct Rows {
  const T* kernel;
  int64_t n_rows;
  int64_t row_stride;
  int64_t n_references;
  const T* weight;
  const T* covered;
  double* gains;  // [M]
};

// The comparison is false for NaN, which passes.
template <class T>
LAPAL_HD T gain_of(T kernel, T weight, T covered) {
  const T gain = kernel - covered;
  return weight * (gain < T(0) ? T(0) : gain);
}

// The gains of rows first, first + step, and so on.
template <int kRows, class T>
LAPAL_HD void cover_rows(const Rows<T>& rows, int64_t first, int64_t step) {
  constexpr int kL = kLanes<T>;
  const T* kernel[kRows];
  double gains[kRows];
  for (int r = 0; r < kRows; ++r) {
    kernel[r] = rows.kernel + (first + r * step) * rows.row_stride;
    gains[r] = 0.0;
  }
  for (int64_t start = 0; start < rows.n_references; start += kBlock) {
    const int64_t stop = std::min(start + kBlock, rows.n_references);
    alignas(kBlockBytes) T sums[kRows][kL];
    LAPAL_UNROLL
    for (int r = 0; r < kRows; ++r) {  // an initialiser would clear memory and load it again
#pragma omp simd
      for (int lane = 0; lane < kL; ++lane) {
        sums[r][lane] = T(0);
      }
    }
    int64_t e = start;
    for (; e + kL <= stop; e += kL) {
      LAPAL_UNROLL
      for (int r = 0; r < kRows; ++r) {
        const T* values = kernel[r] + e;
#pragma omp simd
        for (int lane = 0; lane < kL; ++lane) {
          sums[r][lane] += gain_of(values[lane], rows.weight[e + lane], rows.covered[e + lane]);
        }
      }
    }
    for (int r = 0; r < kRows; ++r) {
      for (int64_t last = e; last < stop; ++last) {
        sums[r][last - e] += gain_of(kernel[r][last], rows.weight[last], rows.covered[last]);
      }
      gains[r] += double(fold(sums[r]));
    }
  }
  for (int r = 0; r < kRows; ++r) {
    rows.gains[first + r * step] = gains[r];
  }
}

// Rows [begin, end), in kRows parts that are read in turn; then the rows that remain, in fewer.
template <int kRows, class T>
LAPAL_HD void cover_parts(const Rows<T>& rows, int64_t begin, int64_t end) {
  const int64_t step = (end - begin) / kRows;
  for (int64_t row = begin; row < begin + step; ++row) {
    cover_rows<kRows>(rows, row, step);
  }
  if constexpr (kRows > 1) {
    cover_parts<kRows / 2>(rows, begin + kRows * step, end);
  }
}

LAPAL_CLONES void gain_kernel(const Rows<float>& rows, int64_t begin, int64_t end) {
  cover_parts<kStreams>(rows, begin, end);
}

LAPAL_CLONES void gain_kernel(const Rows<double>& rows, int64_t begin, int64_t end) {
  cover_parts<kStreams>(rows, begin, end);
}

Tensor coverage_gain_cpu(const Tensor& kernel, const Tensor& weight, const Tensor& covered) {
  const CoverageGainArguments call = check_coverage_gain(kernel, weight, covered);
  Tensor gains = torch::stable::new_zeros(kernel, {call.n_rows}, ScalarType::Double);
  if (call.n_rows == 0 || call.n_references == 0) {
    return gains;
  }
  const Tensor dense_kernel = kernel.stride(1) == 1 ? kernel : torch::stable::contiguous(kernel);
  const Tensor dense_weight = torch::stable::contiguous(weight);
  const Tensor dense_covered = torch::stable::contiguous(covered);
  dispatch_floating(call.dtype, kOp, [&](auto tag) {
    using scalar_t = typename decltype(tag)::type;
    const Rows<scalar_t> rows{dense_kernel.const_data_ptr<scalar_t>(),
                              call.n_rows,
                              dense_kernel.stride(0),
                              call.n_references,
                              dense_weight.const_data_ptr<scalar_t>(),
                              dense_covered.const_data_ptr<scalar_t>(),
                              gains.mutable_data_ptr<double>()};
    torch::stable::parallel_for(0, call.n_rows, 1 + kGrain / call.n_references,
                                [&](int64_t begin, int64_t end) { gain_kernel(rows, begin, end); });
  });
  return gains;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(lapal_ext, CPU, m) {
  m.impl("coverage_gain", TORCH_BOX(&coverage_gain_cpu));
}
