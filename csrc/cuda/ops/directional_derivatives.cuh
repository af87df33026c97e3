// First and second derivative of the cross-entropy of many rows along one direction.
//
//   L'(s) = sum_n t_n (p_n.v_n - v_n[y_n]),  L''(s) = sum_n t_n (p_n.v_n^2 - (p_n.v_n)^2),  p_n = softmax(z_n + s v_n),
//
// and the largest p_nk |v_nk - p_n.v_n|.
//
// Shapes: logits z [C, N], direction v [C, N], targets y [N], trust t [N]; all with any strides -> three float64
// numbers.
//
// A thread takes a row (class_lines.cuh) in three passes over the classes: the largest logit; the sum of the
// exponentials and the mean of v; the variance about the mean and the largest rate. v is taken relative to that of the
// winner: where it has nearly all probability, v and its mean are nearly the same number. A target out of range makes
// the results NaN.
//
// The rows of a block are a tile. Each tile writes its sums in float64 to a workspace of 24 bytes per kLineBlock rows.
// A second launch of one block joins them, so the order of a sum depends on N only.
//
// Limit: memory, one read of 2 N C numbers; two more reads from cache and 2 N C exponentials.
#pragma once

#include "cuda/shared/class_lines.cuh"

namespace lapal_ext {

constexpr int kJoinBlock = 256;  // threads of the second launch

template <class T>
struct Line {
  LogitRows<T> logits;     // of step 0
  LogitRows<T> direction;  // of the same size
  const int64_t* targets;
  int64_t target_stride;
  const T* trust;
  int64_t trust_stride;
  T step;
  double* partial;  // [3, tiles]
};

// What a row, a tile or all rows give.
template <class T>
struct Derivatives {
  T first, second, largest;
};

// The larger of two numbers, or NaN if one of them is.
struct Larger {
  template <class T>
  __device__ __forceinline__ T operator()(T a, T b) const {
    return a != a || b <= a ? a : b;
  }
};

template <class T>
__device__ __forceinline__ Derivatives<T> derivatives_of_row(const Line<T>& line, int64_t n) {
  const int64_t n_classes = line.logits.n_classes;
  const int64_t logit_stride = line.logits.class_stride, direction_stride = line.direction.class_stride;
  const T* logits = line.logits.data + n * line.logits.row_stride;
  const T* direction = line.direction.data + n * line.direction.row_stride;
  const T step = line.step;
  const auto logit = [=](int64_t k) { return logits[k * logit_stride] + step * direction[k * direction_stride]; };

  const int64_t target = line.targets[n * line.target_stride];
  const bool known = target >= 0 && target < n_classes;
  const Candidate<T> winner = largest_logit<T>(n_classes, logit);
  const T origin = known ? direction[winner.index * direction_stride] : T(__builtin_nanf(""));
  LineSoftmax<T> softmax(winner.value);
  T mean = T(0);
#pragma unroll 4
  for (int64_t k = 0; k < n_classes; ++k) {
    mean += softmax.add(logit(k)) * (direction[k * direction_stride] - origin);
  }
  softmax.finish();
  mean *= softmax.inverse;

  T square = T(0), largest = T(0);
#pragma unroll 4
  for (int64_t k = 0; k < n_classes; ++k) {
    const T deviation = (direction[k * direction_stride] - origin) - mean;
    const T rate = softmax.probability(logit(k)) * deviation;
    square += rate * deviation;
    largest = Larger()(largest, rate < T(0) ? -rate : rate);
  }
  const T trust = line.trust[n * line.trust_stride];
  const T of_target = known ? direction[target * direction_stride] : origin;
  return {trust * (mean - (of_target - origin)), trust * square, largest};
}

// Joins the rows or tiles of a block.
template <int kBlock>
__device__ __forceinline__ Derivatives<double> join_block(const Derivatives<double>& own, double* scratch) {
  return {block_reduce<kBlock>(own.first, 0.0, Sum(), scratch), block_reduce<kBlock>(own.second, 0.0, Sum(), scratch),
          block_reduce<kBlock>(own.largest, 0.0, Larger(), scratch)};
}

template <class T>
__global__ void __launch_bounds__(kLineBlock, 1) derivatives_kernel(Line<T> line) {
  LAPAL_SHARED(double, scratch, kLineBlock / kWarpSize);
  const int64_t n_tiles = line_tiles(line.logits.n_rows);
  for (int64_t tile = blockIdx.x; tile < n_tiles; tile += gridDim.x) {
    const int64_t n = tile * kLineBlock + threadIdx.x;
    Derivatives<double> own = {0.0, 0.0, 0.0};
    if (n < line.logits.n_rows) {
      const Derivatives<T> row = derivatives_of_row(line, n);
      own = {double(row.first), double(row.second), double(row.largest)};
    }
    const Derivatives<double> joined = join_block<kLineBlock>(own, scratch);
    if (threadIdx.x == 0) {
      line.partial[tile] = joined.first;
      line.partial[n_tiles + tile] = joined.second;
      line.partial[2 * n_tiles + tile] = joined.largest;
    }
  }
}

// One block.
static __global__ void __launch_bounds__(kJoinBlock, 1)
    join_derivatives_kernel(const double* partial, int64_t n_tiles, double* first, double* second, double* largest) {
  LAPAL_SHARED(double, scratch, kJoinBlock / kWarpSize);
  Derivatives<double> own = {0.0, 0.0, 0.0};
  for (int64_t tile = threadIdx.x; tile < n_tiles; tile += kJoinBlock) {
    own.first += partial[tile];
    own.second += partial[n_tiles + tile];
    own.largest = Larger()(own.largest, partial[2 * n_tiles + tile]);
  }
  const Derivatives<double> joined = join_block<kJoinBlock>(own, scratch);
  if (threadIdx.x == 0) {
    *first = joined.first;
    *second = joined.second;
    *largest = joined.largest;
  }
}

}  // namespace lapal_ext
