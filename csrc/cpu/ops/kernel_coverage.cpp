// Gain in coverage of many rows under the Gaussian kernel.
//
//   gain_j = sum_e weight_e max(0, k_je - covered_e),  k_je = exp(min(x_j.r_e - 1, 0) 2 / h^2).
//
// Shapes: rows x [M, D], references r [E, D], weight [E], covered [E] -> [M] in double; any strides.
//
// Layout: references are in lanes. A block of references is packed in panels [panel][D][kPanel] that stay in the
// second-level cache for many groups of rows (cpu/gemm/tile.h). A group of rows is copied to a padded buffer. The
// products of a group with one panel are a tile of two vectors per row, which becomes kernel values and gains while it
// is in the first-level cache. Nothing of size M x E is stored. References that have the layout of panels (a transposed
// matrix) are read in place by the first group, which packs them on the way if other groups follow. So few rows do not
// wait for a packing that costs more than their products; in any other layout they do.
//
// Parallel over pairs (block of references, block of row groups), so that few rows of many references are shared out
// too. Each worker packs its own references. A lane adds the gains of one block; the lanes of a row are folded once per
// block, and the sums of the blocks are added in order, in double. A product is one chain of additions over D, in place
// or packed. So the order of every sum depends on D and E only: equal rows have equal gains for any number of rows and
// threads, and for references in any layout.
//
// If the rows are the references, in the same memory, the kernel is symmetric: k_je = k_ej. Then a tile of rows and
// later references adds the gains of both, and half of the products is enough. The gains of the references are added
// over the rows of a block by lanes, so the order of a sum also depends on the place of a row.
//
// Limit: arithmetic, M E D multiply-adds and M E exponentials; half of both if the rows are the references.
#include "torch/arguments/kernel_coverage.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>

#include "cpu/gemm/dots.h"
#include "cpu/gemm/packing.h"
#include "cpu/gemm/tile.h"
#include "cpu/simd/lanes.h"
#include "cpu/simd/scratch.h"
#include "shared/exponential.h"
#include "torch/dispatch.h"
#include "torch/parallel_tiles.h"

namespace {

using namespace lapal_ext;
using torch::stable::Tensor;

constexpr int64_t kBlockBytesPacked = 384 << 10;  // of a block of references: part of a second-level cache
constexpr int64_t kMaxBlockPanels = 8;            // so that a lane adds few gains before they become a double
constexpr int64_t kBlockGroups = 16;              // row groups of one task
constexpr int kHeightStep = 4;                    // between the heights of tiles: 2, 6, 10 and 14 rows
constexpr int64_t kGrainWork = 1 << 17;           // multiply-adds per worker; with fewer, starting it costs more
constexpr int64_t kMaxPartialSums = 1 << 20;      // sums of blocks that wait to be added
constexpr int64_t kMirrorPanels = 7;         // of a block that is rows and references: 16 groups of 14 rows in float
constexpr int64_t kMaxMirrorSums = 1 << 22;  // sums of all pairs of a block and a row; with more, without mirroring
// Lines that are prefetched of a panel in place. With 8 they come too late. With 32 the lines of a matrix whose size is
// a power of two drive each other out of the first-level cache.
constexpr int64_t kPlaceLinesAhead = 16;

template <class T>
struct Coverage {
  Matrix<T> rows;
  Matrix<T> references;
  int64_t depth;
  const T* weight;           // contiguous, with zeros after the last reference up to the end of its block
  const T* covered;          // the same
  T scale;                   // 2 / h^2
  int64_t block_references;  // panels of a block times kPanel
};

// A worker's packed block of references, its group of rows, and the gains of the references of a block.
template <class T>
struct Buffers {
  T* panels;
  T* group;
  T* mirrored;  // only if the rows are the references
};

// The numbers behind them.
template <class T>
struct Memory {
  Memory(int64_t panels_size, int64_t group_size, int64_t mirrored_size)
      : panels(panels_size), group(group_size), mirrored(mirrored_size) {}
  explicit operator bool() const {
    return panels && group && mirrored;
  }

  Scratch<T> panels, group, mirrored;
};

// Comparisons are false for NaN, which passes.
template <class T>
LAPAL_HD T kernel_of(T product, T scale) {
  const T excess = product - T(1);
  return exp_nonpositive((excess > T(0) ? T(0) : excess) * scale);
}

template <class T>
LAPAL_HD T gain_of(T kernel, T weight, T covered) {
  const T gain = kernel - covered;
  return weight * (gain < T(0) ? T(0) : gain);
}

// sums[row] += the gains of one tile, by lanes.
template <int kRows, class T>
LAPAL_HD void add_gains(const T* tile, const T* weight, const T* covered, T scale, T (*sums)[kLanes<T>]) {
  constexpr int kL = kLanes<T>;
  for (int row = 0; row < kRows; ++row) {
    const T* products = tile + row * kPanel<T>;
#pragma omp simd
    for (int lane = 0; lane < kL; ++lane) {
      sums[row][lane] += gain_of(kernel_of(products[lane], scale), weight[lane], covered[lane]);
      sums[row][lane] += gain_of(kernel_of(products[kL + lane], scale), weight[kL + lane], covered[kL + lane]);
    }
  }
}

// The same, and mirrored[lane] += the gains of the references of the tile by its first `height` rows.
template <int kRows, class T>
LAPAL_HD void add_both_gains(const T* tile, const T* weight, const T* covered, T scale, T (*sums)[kLanes<T>],
                             const T* row_weight, const T* row_covered, int64_t height, T* mirrored) {
  constexpr int kL = kLanes<T>;
  for (int64_t row = 0; row < height; ++row) {
    const T* products = tile + row * kPanel<T>;
    const T own_weight = row_weight[row], own_covered = row_covered[row];
#pragma omp simd
    for (int lane = 0; lane < kL; ++lane) {
      const T left = kernel_of(products[lane], scale), right = kernel_of(products[kL + lane], scale);
      sums[row][lane] += gain_of(left, weight[lane], covered[lane]);
      sums[row][lane] += gain_of(right, weight[kL + lane], covered[kL + lane]);
      mirrored[lane] += gain_of(left, own_weight, own_covered);
      mirrored[kL + lane] += gain_of(right, own_weight, own_covered);
    }
  }
}

// Products of a group of rows with a panel in place, whose lines are `stride` apart. kKeeps: the panel is packed on the
// way, for the groups that follow.
template <int kRows, bool kKeeps, class T>
LAPAL_HD void multiply_in_place(const T* group, const T* panel, int64_t stride, int64_t depth, T* tile, T* packed) {
  TileSums<kRows, T> sums;
  for (int64_t start = 0; start < depth; start += kDepth) {
    const T* rows = group + group_offset<kRows, T>(start);
    for (int64_t i = start; i < std::min(start + kDepth, depth); ++i) {
      const T* line = panel + i * stride;
      // The lines after the last are those of the next panel.
      const int64_t ahead = i + kPlaceLinesAhead;
      const T* later = ahead < depth ? panel + ahead * stride : panel + kPanel<T> + (ahead - depth) * stride;
      __builtin_prefetch(later);
      __builtin_prefetch(later + kLanes<T>);
      if constexpr (kKeeps) {
#pragma omp simd
        for (int j = 0; j < kPanel<T>; ++j) {
          packed[i * kPanel<T> + j] = line[j];
        }
      }
      sums.add(rows++, kGroupStride<T>, 1, line, kPanel<T>, 1);
    }
  }
  sums.store(tile);
}

// A block of references.
struct Block {
  int64_t first;
  int64_t last;
  bool in_place;  // its whole panels are not packed
  bool keeps;     // the group that reads them in place packs them
  bool mirrors;   // its references gain from the rows too
};

// Gains of `height` rows from `row` over one block. An incomplete last group uses the smallest tile that holds it: with
// 14 rows at a time, one row would cost as much as 14.
template <int kRows, class T>
LAPAL_HD void cover_rows(const Coverage<T>& coverage, const Block& block, int64_t row, int64_t height,
                         const Buffers<T>& buffers, double* gains) {
  if constexpr (kRows > kHeightStep) {
    if (height <= kRows - kHeightStep) {
      return cover_rows<kRows - kHeightStep>(coverage, block, row, height, buffers, gains);
    }
  }
  const int64_t depth = coverage.depth;
  for (int64_t start = 0; start < depth; start += kDepth) {
    pack_group<kRows>(coverage.rows, row, start, std::min(kDepth, depth - start),
                      buffers.group + group_offset<kRows, T>(start));
  }
  const Matrix<T>& references = coverage.references;
  alignas(kBlockBytes) T sums[kRows][kLanes<T>] = {};
  for (int64_t reference = block.first; reference < block.last; reference += kPanel<T>) {
    alignas(kBlockBytes) T tile[kRows * kPanel<T>];
    T* panel = buffers.panels + (reference - block.first) * depth;
    if (!block.in_place || reference + kPanel<T> > block.last) {
      multiply_group<kRows>(buffers.group, panel, depth, tile);
    } else if (block.keeps) {
      multiply_in_place<kRows, true>(buffers.group, references.data + reference, references.feature_stride, depth, tile,
                                     panel);
    } else {
      multiply_in_place<kRows, false>(buffers.group, references.data + reference, references.feature_stride, depth,
                                      tile, panel);
    }
    // The product of an infinite feature with the zeros after the last reference is NaN, and no reference has it.
    for (int64_t j = block.last - reference; j < kPanel<T>; ++j) {
      for (int r = 0; r < kRows; ++r) {
        tile[r * kPanel<T> + j] = T(0);
      }
    }
    const T *weight = coverage.weight + reference, *covered = coverage.covered + reference;
    if (block.mirrors) {
      add_both_gains<kRows>(tile, weight, covered, coverage.scale, sums, coverage.weight + row, coverage.covered + row,
                            height, buffers.mirrored + (reference - block.first));
    } else {
      add_gains<kRows>(tile, weight, covered, coverage.scale, sums);
    }
  }
  for (int64_t r = 0; r < height; ++r) {
    gains[row + r] = double(fold(sums[r]));
  }
}

// Gains of row groups [begin, end) over one block of references; gains [M].
template <int kRows, class T>
LAPAL_HD void cover_groups(const Coverage<T>& coverage, int64_t index, int64_t begin, int64_t end,
                           const Buffers<T>& buffers, double* gains) {
  const Matrix<T>& references = coverage.references;
  Block block;
  block.first = index * coverage.block_references;
  block.last = std::min(block.first + coverage.block_references, references.n_rows);
  block.in_place = references.row_stride == 1;
  block.keeps = end - begin > 1;
  block.mirrors = false;
  if (block.in_place) {
    const int64_t whole = block.first + (block.last - block.first) / kPanel<T> * kPanel<T>;
    T* incomplete = buffers.panels + (whole - block.first) * coverage.depth;
    pack_lines(references, whole, block.last, 0, coverage.depth, incomplete);
  } else {
    pack_points(references, block.first, block.last, 0, coverage.depth, buffers.panels);
  }
  for (int64_t group = begin; group < end; ++group) {
    const int64_t height = std::min<int64_t>(kRows, coverage.rows.n_rows - group * kRows);
    cover_rows<kRows>(coverage, block, group * kRows, height, buffers, gains);
    block.in_place &= !block.keeps;
  }
}

// Gains of the rows of block `rows_index` over block `index`, which is the same or a later one, and of the references
// of the later one over these rows. `direct` and `mirrored` are their sums, [N] each. The block is packed.
template <int kRows, class T>
LAPAL_HD void cover_pair(const Coverage<T>& coverage, int64_t rows_index, int64_t index, const Buffers<T>& buffers,
                         double* direct, double* mirrored) {
  const int64_t size = coverage.block_references, n_rows = coverage.rows.n_rows;
  Block block{index * size, std::min((index + 1) * size, n_rows), false, false, rows_index < index};
  std::fill(buffers.mirrored, buffers.mirrored + size, T(0));
  const int64_t first = rows_index * size, last = std::min(first + size, n_rows);
  for (int64_t row = first; row < last; row += kRows) {
    cover_rows<kRows>(coverage, block, row, std::min<int64_t>(kRows, last - row), buffers, direct);
  }
  if (block.mirrors) {
    for (int64_t reference = block.first; reference < block.last; ++reference) {
      mirrored[reference] = double(buffers.mirrored[reference - block.first]);
    }
  }
}

// Packs block `index` of the references.
template <class T>
LAPAL_HD void pack_block(const Coverage<T>& coverage, int64_t index, T* panels) {
  const int64_t first = index * coverage.block_references;
  const int64_t last = std::min(first + coverage.block_references, coverage.references.n_rows);
  if (coverage.references.row_stride == 1) {
    pack_lines(coverage.references, first, last, 0, coverage.depth, panels);
  } else {
    pack_points(coverage.references, first, last, 0, coverage.depth, panels);
  }
}

#define LAPAL_COVERAGE_KERNELS(T)                                                                               \
  LAPAL_CLONES void pack_kernel(const Coverage<T>& coverage, int64_t index, T* panels) {                        \
    pack_block(coverage, index, panels);                                                                        \
  }                                                                                                             \
  LAPAL_AVX512 void avx512_pair_kernel(const Coverage<T>& coverage, int64_t rows_index, int64_t index,          \
                                       const Buffers<T>& buffers, double* direct, double* mirrored) {           \
    cover_pair<kAvx512Rows>(coverage, rows_index, index, buffers, direct, mirrored);                            \
  }                                                                                                             \
  LAPAL_NOT_AVX512 void portable_pair_kernel(const Coverage<T>& coverage, int64_t rows_index, int64_t index,    \
                                             const Buffers<T>& buffers, double* direct, double* mirrored) {     \
    cover_pair<kPortableRows>(coverage, rows_index, index, buffers, direct, mirrored);                          \
  }                                                                                                             \
  LAPAL_AVX512 void avx512_kernel(const Coverage<T>& coverage, int64_t block, int64_t begin, int64_t end,       \
                                  const Buffers<T>& buffers, double* gains) {                                   \
    cover_groups<kAvx512Rows>(coverage, block, begin, end, buffers, gains);                                     \
  }                                                                                                             \
  LAPAL_NOT_AVX512 void portable_kernel(const Coverage<T>& coverage, int64_t block, int64_t begin, int64_t end, \
                                        const Buffers<T>& buffers, double* gains) {                             \
    cover_groups<kPortableRows>(coverage, block, begin, end, buffers, gains);                                   \
  }
LAPAL_COVERAGE_KERNELS(float)
LAPAL_COVERAGE_KERNELS(double)
#undef LAPAL_COVERAGE_KERNELS

// A vector with zeros after its end.
template <class T>
void copy_padded(const Tensor& vector, int64_t padded, T* to) {
  const T* from = vector.const_data_ptr<T>();
  const int64_t size = vector.size(0), stride = vector.stride(0);
  for (int64_t i = 0; i < size; ++i) {
    to[i] = from[i * stride];
  }
  std::fill(to + size, to + padded, T(0));
}

// Copies weights and covered to `values`, which holds 2 * padded numbers, each with zeros after its end.
template <class T>
void set_vectors(Coverage<T>& coverage, const Tensor& weight, const Tensor& covered, int64_t padded, T* values) {
  copy_padded(weight, padded, values);
  copy_padded(covered, padded, values + padded);
  coverage.weight = values;
  coverage.covered = values + padded;
}

// Adds the sums of `count` blocks, [count, M], to the gains, in order.
void add_blocks(const double* partial, int64_t count, int64_t n_rows, double* gains) {
  for (int64_t index = 0; index < count; ++index) {
    for (int64_t row = 0; row < n_rows; ++row) {
      gains[row] += partial[index * n_rows + row];
    }
  }
}

// Panels of a block of references, at most `most`.
template <class T>
int64_t panels_of_block(const Coverage<T>& coverage, int64_t most) {
  const int64_t panel_bytes = std::max<int64_t>(coverage.depth, 1) * kPanel<T> * int64_t(sizeof(T));
  return std::clamp<int64_t>(kBlockBytesPacked / panel_bytes, 1, most);
}

// Adds the gains of all rows, which are the references, [N]. False if there are too many to be mirrored.
template <class T>
bool mirror_coverage(Coverage<T> coverage, const Tensor& weight, const Tensor& covered, double* gains) {
  const int64_t n_rows = coverage.rows.n_rows;
  const int group_rows = rows_of_group();
  coverage.block_references = panels_of_block(coverage, kMirrorPanels) * kPanel<T>;
  const int64_t n_blocks = (n_rows + coverage.block_references - 1) / coverage.block_references;
  if (n_blocks * n_rows > kMaxMirrorSums) {
    return false;
  }
  const int64_t padded = n_blocks * coverage.block_references;
  const Scratch<T> values(2 * padded);
  const Scratch<double> partial(n_blocks * n_rows);  // [block][row]: what a row gains from the references of a block
  STD_TORCH_CHECK(values && partial, kOp, ": out of memory");
  set_vectors(coverage, weight, covered, padded, values.data());
  const int64_t work = coverage.block_references * coverage.block_references * (coverage.depth + 1);
  const auto make_memory = [&] {
    return Memory<T>(coverage.block_references * coverage.depth, group_size<T>(group_rows, coverage.depth),
                     coverage.block_references);
  };
  const auto cover_pairs = [&](int64_t begin, int64_t end, const Memory<T>& memory) {
    const Buffers<T> buffers{memory.panels.data(), memory.group.data(), memory.mirrored.data()};
    int64_t index = 0, base = 0;  // pairs [base, base + index] are those of block `index` with itself and earlier ones
    while (base + index < begin) {
      base += ++index;
    }
    for (int64_t pair = begin, packed = -1; pair < end; ++pair) {
      if (pair > base + index) {
        base += ++index;
      }
      if (packed != index) {
        pack_kernel(coverage, index, buffers.panels);
        packed = index;
      }
      const int64_t rows_index = pair - base;
      double *direct = partial.data() + index * n_rows, *mirrored = partial.data() + rows_index * n_rows;
      if (has_avx512()) {
        avx512_pair_kernel(coverage, rows_index, index, buffers, direct, mirrored);
      } else {
        portable_pair_kernel(coverage, rows_index, index, buffers, direct, mirrored);
      }
    }
  };
  parallel_tiles(n_blocks * (n_blocks + 1) / 2, 1 + kGrainWork / work, kOp, make_memory, cover_pairs);
  add_blocks(partial.data(), n_blocks, n_rows, gains);
  return true;
}

// Adds the gains of all rows, [M].
template <class T>
void add_coverage(Coverage<T> coverage, const Tensor& weight, const Tensor& covered, double* gains) {
  const int64_t n_rows = coverage.rows.n_rows, n_references = coverage.references.n_rows;
  const int group_rows = rows_of_group();
  const int64_t n_groups = (n_rows + group_rows - 1) / group_rows;
  const int64_t row_blocks = (n_groups + kBlockGroups - 1) / kBlockGroups;
  // Blocks of equal size, so that their tasks take equal time.
  const int64_t fitting = panels_of_block(coverage, kMaxBlockPanels);
  const int64_t n_panels = (n_references + kPanel<T> - 1) / kPanel<T>;
  const int64_t n_blocks = (n_panels + fitting - 1) / fitting;
  coverage.block_references = (n_panels + n_blocks - 1) / n_blocks * kPanel<T>;

  const int64_t padded = n_blocks * coverage.block_references;
  const Scratch<T> values(2 * padded);
  const int64_t round = std::clamp<int64_t>(kMaxPartialSums / n_rows, 1, n_blocks);  // blocks between two additions
  const Scratch<double> partial(round * n_rows);
  STD_TORCH_CHECK(values && partial, kOp, ": out of memory");
  set_vectors(coverage, weight, covered, padded, values.data());

  const int64_t task_rows = std::min(kBlockGroups, n_groups) * group_rows;
  const int64_t grain = 1 + kGrainWork / (task_rows * coverage.block_references * (coverage.depth + 1));
  const auto make_memory = [&] {
    return Memory<T>(coverage.block_references * coverage.depth, group_size<T>(group_rows, coverage.depth), 0);
  };
  for (int64_t first_block = 0; first_block < n_blocks; first_block += round) {
    const int64_t count = std::min(round, n_blocks - first_block);
    const auto cover_tasks = [&](int64_t begin, int64_t end, const Memory<T>& memory) {
      const Buffers<T> buffers{memory.panels.data(), memory.group.data(), nullptr};
      while (begin < end) {  // all row groups of this worker for one block of references, which is packed once
        const int64_t index = begin / row_blocks, base = index * row_blocks;
        const int64_t stop = std::min(end, base + row_blocks);
        const int64_t first_group = (begin - base) * kBlockGroups;
        const int64_t last_group = std::min((stop - base) * kBlockGroups, n_groups);
        double* sums = partial.data() + index * n_rows;
        if (has_avx512()) {
          avx512_kernel(coverage, first_block + index, first_group, last_group, buffers, sums);
        } else {
          portable_kernel(coverage, first_block + index, first_group, last_group, buffers, sums);
        }
        begin = stop;
      }
    };
    parallel_tiles(count * row_blocks, grain, kOp, make_memory, cover_tasks);
    add_blocks(partial.data(), count, n_rows, gains);
  }
}

bool same_memory(const Tensor& a, const Tensor& b) {
  return a.const_data_ptr() == b.const_data_ptr() && a.size(0) == b.size(0) && a.stride(0) == b.stride(0) &&
         a.stride(1) == b.stride(1);
}

Tensor kernel_coverage_cpu(const Tensor& rows, const Tensor& references, const Tensor& weight, const Tensor& covered,
                           double inverse_squared_bandwidth) {
  const KernelCoverageArguments call = check_kernel_coverage(rows, references, weight, covered);
  Tensor gains = torch::stable::new_zeros(rows, {call.n_rows}, ScalarType::Double);
  if (call.n_rows == 0 || call.n_references == 0) {
    return gains;
  }
  dispatch_floating(call.dtype, kOp, [&](auto tag) {
    using scalar_t = typename decltype(tag)::type;
    Coverage<scalar_t> coverage{};
    coverage.rows = matrix_of<scalar_t>(rows);
    coverage.references = matrix_of<scalar_t>(references);
    coverage.depth = call.n_features;
    coverage.scale = scalar_t(2.0 * inverse_squared_bandwidth);
    double* sums = gains.mutable_data_ptr<double>();
    if (!same_memory(rows, references) || !mirror_coverage(coverage, weight, covered, sums)) {
      add_coverage(coverage, weight, covered, sums);
    }
  });
  return gains;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(lapal_ext, CPU, m) {
  m.impl("kernel_coverage", TORCH_BOX(&kernel_coverage_cpu));
}
