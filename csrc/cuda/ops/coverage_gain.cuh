// Gain in coverage of many rows, from kernel values in memory.
//
//   gain_j = sum_e w_e max(0, k_je - m_e)
//
// Shapes: kernel k [M, E], weight w [E], covered m [E]; all with any strides -> float64 [M].
//
// A block takes kGainRows rows and a part of the references (evaluation_tiles.cuh). A row of a part has 32 sums, each
// of every 32nd reference; a thread makes kThreadSums of the block's. If neighbouring numbers are those of a row, the
// lanes of a warp make the 32 sums of a row, and the kThreadSums rows of the warp share the loads of w and m. If they
// are those of a column, the lanes make a sum of 32 rows, and the sums are transposed through shared memory. The lanes
// of a warp then add the 32 sums of a row. kRun terms are added before they are converted to float64.
//
// A second launch adds the parts in order, if there are several. The order of a sum depends on E alone, so equal rows
// have equal gains, to the bit, in every layout. Workspace: at most 512 bytes per row.
//
// Limit: memory, one read of M E numbers. w and m come from cache, 2 E numbers for kThreadSums rows.
#pragma once

#include "cuda/shared/evaluation_tiles.cuh"

namespace lapal_ext {

constexpr int kGainBlock = 256;  // threads
constexpr int kGainWarps = kGainBlock / kWarpSize;
constexpr int kGainRows = kWarpSize;  // of a block
constexpr int kThreadSums = kGainRows / kGainWarps;
constexpr int kRun = 8;                              // references of one sum
constexpr int kGainStep = kRun * kWarpSize;          // references at a time
constexpr int64_t kGainReferences = 16 * kGainStep;  // of a part at least

template <class T>
struct Gains {
  const T* kernel;  // [M, E]
  int64_t row_stride, reference_stride;
  const T* weight;  // [E]
  int64_t weight_stride;
  const T* covered;  // [E]
  int64_t covered_stride;
  int64_t n_rows;
  EvaluationParts parts;
  double* partial_sums;  // [parts, M]
};

// Adds a part of the references. The i-th sum of a thread is that of row number `own + i` of the block and of every
// 32nd reference from `lane` on, or the other way round. A gain that is not a number stays one.
template <bool kLanesAreRows, class T>
__device__ __forceinline__ void add_part(const Gains<T>& call, int64_t first_row, int64_t part,
                                         double (&sums)[kThreadSums]) {
  const int lane = int(threadIdx.x) % kWarpSize, own = int(threadIdx.x) / kWarpSize * kThreadSums;
  const int row = kLanesAreRows ? lane : own, reference = kLanesAreRows ? own : lane;
  const int64_t n_rows = call.n_rows - first_row - row;  // that are left for the thread
  const int64_t stride = kLanesAreRows ? call.reference_stride : call.row_stride;
  const int64_t e = call.parts.start(part) + reference;
  const T* kernel = call.kernel + (first_row + row) * call.row_stride + e * call.reference_stride;
  const T* weight = call.weight + e * call.weight_stride;
  const T* covered = call.covered + e * call.covered_stride;
  for (int64_t left = call.parts.end(part) - e; left > 0; left -= kGainStep) {
    T terms[kThreadSums] = {};
// The loads of four steps are in flight together; those of all would take too many registers.
#pragma unroll 4
    for (int step = 0; step < kRun; ++step) {
#pragma unroll
      for (int i = 0; i < kThreadSums; ++i) {
        const int next_row = kLanesAreRows ? 0 : i, next_reference = kLanesAreRows ? i : 0;
        if (next_row < n_rows && step * kWarpSize + next_reference < left) {
          const T gain = kernel[i * stride] - covered[next_reference * call.covered_stride];
          terms[i] += weight[next_reference * call.weight_stride] * (gain < T(0) ? T(0) : gain);
        }
      }
      kernel += kWarpSize * call.reference_stride;
      weight += kWarpSize * call.weight_stride;
      covered += kWarpSize * call.covered_stride;
    }
#pragma unroll
    for (int i = 0; i < kThreadSums; ++i) {
      sums[i] += double(terms[i]);
    }
  }
}

// Pairs (rows, part).
template <bool kLanesAreRows, class T>
__global__ void __launch_bounds__(kGainBlock, 1) coverage_gain_kernel(Gains<T> call) {
  constexpr int kLine = kWarpSize + 1;  // odd, so that a column of sums is in all banks
  const int lane = int(threadIdx.x) % kWarpSize, own = int(threadIdx.x) / kWarpSize * kThreadSums;
  const int64_t n_pairs = (call.n_rows + kGainRows - 1) / kGainRows * call.parts.n_parts;
  for (int64_t pair = blockIdx.x; pair < n_pairs; pair += gridDim.x) {
    const int64_t first_row = pair / call.parts.n_parts * kGainRows, part = pair % call.parts.n_parts;
    double sums[kThreadSums] = {};
    add_part<kLanesAreRows>(call, first_row, part, sums);
    if constexpr (kLanesAreRows) {
      LAPAL_SHARED(double, all_sums, kGainRows* kLine);
#pragma unroll
      for (int i = 0; i < kThreadSums; ++i) {
        all_sums[lane * kLine + own + i] = sums[i];
      }
      __syncthreads();
#pragma unroll
      for (int i = 0; i < kThreadSums; ++i) {
        sums[i] = all_sums[(own + i) * kLine + lane];
      }
      __syncthreads();  // the sums of the next rows overwrite these
    }
#pragma unroll
    for (int i = 0; i < kThreadSums; ++i) {
      const double sum = warp_reduce(sums[i], Sum());
      const int64_t n = first_row + own + i;
      if (lane == i && n < call.n_rows) {
        call.partial_sums[part * call.n_rows + n] = sum;
      }
    }
  }
}

}  // namespace lapal_ext
