// Loss after each of M hypothetical batches, summed over E evaluation points.
//
//   logits'(e) = logits(e) + c_e^T H,  c_e = columns[batch, e]
//
// The loss is that of softmax(logits'). With the mean-field link it is that of softmax(logits' / sqrt(1 + kappa v')),
// where v' = v - sum_t beta_t z_t^2 and T z = c_e.
//
// Shapes: logits [C, E], columns [N, E], batches [M, b], H [M, b, C], T [M, b, b], beta [M, b], v [E], targets [E]
// -> float64 [M]. Logits, columns, v and targets have any strides; contiguous points are fastest.
//
// A block takes one hypothesis and a part of the points (evaluation_tiles.cuh). Its H is in shared memory as
// [group][b][kGroup], followed by T and beta. A thread takes kPoints points at a time, so that each number of H that it
// reads serves as many multiply-adds. It keeps kGroup classes of their logits in registers. A complete group is added
// to a running softmax, which is relative to the largest logit so far. So logits are never stored, and C may be any
// number. z of the mean-field link is in shared memory, b numbers per point.
//
// If H, T and z do not fit into shared memory, the same kernel reads H and T in place and keeps z in a workspace of at
// most kMaxLinkBytes. A hypothesis with an index outside of the columns is NaN. If a label is not a class, all
// hypotheses are.
//
// Limit: arithmetic. Per (hypothesis, point, class) b multiply-adds, one exponential, one more per group, and about 25
// operations. Per (hypothesis, point) b columns for each group, from the second-level cache.
#pragma once

#include "cuda/shared/evaluation_tiles.cuh"
#include "cuda/shared/running_softmax.cuh"

namespace lapal_ext {

// Points of a thread.
template <class T>
constexpr int kPoints = 16 / int(sizeof(T));

template <class T>
constexpr int kRoundPoints = kPoints<T> * kPointBlock;  // of a block

constexpr int64_t kMaxLinkBytes = int64_t(64) << 20;

template <class T>
struct Lookahead {
  const T* logits;  // [C, E]
  int64_t class_stride, logit_stride;
  const T* columns;  // [N, E]
  int64_t row_stride, column_stride;
  const int64_t* batches;  // [M, b]
  const T* coefficients;   // [M, b, C]
  const T* triangle;       // [M, b, b]
  const T* beta;           // [M, b]
  const T* variance;       // [E], null for the plugin link
  int64_t variance_stride;
  const int64_t* targets;  // [E], null for the expected losses
  int64_t target_stride;
  int64_t n_hypotheses, n_rows;
  int batch_size, n_classes;
  T kappa;
  EvaluationParts parts;
  T* z;                  // [blocks][b][kPoints][thread], if it is not in shared memory
  double* partial_sums;  // [parts, M]
};

// One hypothesis, in shared memory or in place.
template <class T>
struct Hypothesis {
  const int64_t* rows;  // [b]
  const T* coefficients;
  const T* triangle;  // [b, b]
  const T* beta;      // [b]
  T* z;               // [b][kPoints][thread]
};

__host__ __device__ constexpr int groups_of(int n_classes, int group) {
  return (n_classes + group - 1) / group;
}

// Offsets of the parts of a staged hypothesis, in bytes. The coefficients are first, because they are read in packs.
template <class T>
struct StagedLayout {
  int64_t triangle, beta, z, rows, all;

  __host__ __device__ StagedLayout(int64_t batch_size, int n_classes, int group, bool linked) {
    const int64_t size = int64_t(sizeof(T)), linked_size = linked ? size : 0;
    triangle = batch_size * groups_of(n_classes, group) * group * size;
    beta = triangle + batch_size * batch_size * linked_size;
    z = beta + batch_size * linked_size;
    rows = (z + batch_size * kRoundPoints<T> * linked_size + 7) / 8 * 8;
    all = rows + batch_size * int64_t(sizeof(int64_t));
  }
};

// Copies hypothesis m to shared memory. Classes after the last have coefficients of zero.
template <int kGroup, class T>
__device__ __forceinline__ Hypothesis<T> stage(const Lookahead<T>& call, int64_t m, unsigned char* memory) {
  const int b = call.batch_size, thread = int(threadIdx.x);
  const bool linked = call.variance != nullptr;
  const StagedLayout<T> at(b, call.n_classes, kGroup, linked);
  T* coefficients = reinterpret_cast<T*>(memory);
  T* triangle = reinterpret_cast<T*>(memory + at.triangle);
  T* beta = reinterpret_cast<T*>(memory + at.beta);
  int64_t* rows = reinterpret_cast<int64_t*>(memory + at.rows);
  const int n_padded = groups_of(call.n_classes, kGroup) * kGroup;
  const T* from = call.coefficients + m * b * call.n_classes;
  for (int i = thread; i < b * n_padded; i += kPointBlock) {
    const int t = i / n_padded, k = i % n_padded;
    coefficients[(k / kGroup * b + t) * kGroup + k % kGroup] =
        k < call.n_classes ? from[int64_t(t) * call.n_classes + k] : T(0);
  }
  for (int t = thread; t < b; t += kPointBlock) {
    rows[t] = call.batches[m * b + t];
  }
  if (linked) {
    for (int i = thread; i < b * b; i += kPointBlock) {
      triangle[i] = call.triangle[m * b * b + i];
    }
    for (int t = thread; t < b; t += kPointBlock) {
      beta[t] = call.beta[m * b + t];
    }
  }
  return {rows, coefficients, triangle, beta, reinterpret_cast<T*>(memory + at.z)};
}

template <class T>
__device__ __forceinline__ Hypothesis<T> in_place(const Lookahead<T>& call, int64_t m) {
  const int64_t b = call.batch_size;
  return {call.batches + m * b, call.coefficients + m * b * call.n_classes, call.triangle + m * b * b,
          call.beta + m * b, call.z + int64_t(blockIdx.x) * b * kRoundPoints<T>};
}

// The points of a thread.
template <class T>
struct Points {
  int64_t index[kPoints<T>];  // points after the last repeat it

  __device__ __forceinline__ Points(int64_t start, int64_t n_eval) {
#pragma unroll
    for (int i = 0; i < kPoints<T>; ++i) {
      const int64_t e = start + i * kPointBlock + threadIdx.x;
      index[i] = e < n_eval ? e : n_eval - 1;
    }
  }

  // Column t of the hypothesis at each of them.
  __device__ __forceinline__ void load_column(const Lookahead<T>& call, const Hypothesis<T>& hypothesis, int t,
                                              T (&column)[kPoints<T>]) const {
    const T* row = call.columns + hypothesis.rows[t] * call.row_stride;
#pragma unroll
    for (int i = 0; i < kPoints<T>; ++i) {
      column[i] = row[index[i] * call.column_stride];
    }
  }
};

// Factors of the mean-field link, with z from a forward substitution.
template <class T>
__device__ __forceinline__ void find_links(const Lookahead<T>& call, const Hypothesis<T>& hypothesis,
                                           const Points<T>& points, T (&links)[kPoints<T>]) {
  constexpr int kP = kPoints<T>;
  T* z = hypothesis.z + threadIdx.x;
  T left[kP];
#pragma unroll
  for (int i = 0; i < kP; ++i) {
    left[i] = call.variance[points.index[i] * call.variance_stride];
  }
  for (int t = 0; t < call.batch_size; ++t) {
    T sums[kP];
    points.load_column(call, hypothesis, t, sums);
    for (int s = 0; s < t; ++s) {
      const T weight = hypothesis.triangle[int64_t(t) * call.batch_size + s];
#pragma unroll
      for (int i = 0; i < kP; ++i) {
        sums[i] -= weight * z[(s * kP + i) * kPointBlock];
      }
    }
    const T shrinkage = hypothesis.beta[t];
#pragma unroll
    for (int i = 0; i < kP; ++i) {
      z[(t * kP + i) * kPointBlock] = sums[i];
      left[i] -= shrinkage * (sums[i] * sums[i]);
    }
  }
#pragma unroll
  for (int i = 0; i < kP; ++i) {
    links[i] = mean_field(left[i], call.kappa);
  }
}

// logits'(e) of classes [first, first + count) at all points of the thread.
template <int kGroup, bool kStaged, class T>
__device__ __forceinline__ void move_group(const Lookahead<T>& call, const Hypothesis<T>& hypothesis,
                                           const Points<T>& points, int first, int count,
                                           T (&moved)[kPoints<T>][kGroup]) {
  constexpr int kP = kPoints<T>, kPack = 16 / int(sizeof(T));
#pragma unroll
  for (int k = 0; k < kGroup; ++k) {
    const T* logits = call.logits + (first + (k < count ? k : 0)) * call.class_stride;
#pragma unroll
    for (int i = 0; i < kP; ++i) {
      moved[i][k] = logits[points.index[i] * call.logit_stride];
    }
  }
  for (int t = 0; t < call.batch_size; ++t) {
    T column[kP], weights[kGroup];
    points.load_column(call, hypothesis, t, column);
    if constexpr (kStaged) {
      const T* staged = hypothesis.coefficients + (int64_t(first) * call.batch_size + int64_t(t) * kGroup);
#pragma unroll
      for (int k = 0; k < kGroup; k += kPack) {
        const Pack<T, kPack> pack = load_pack<kPack>(staged + k);
#pragma unroll
        for (int j = 0; j < kPack; ++j) {
          weights[k + j] = pack.values[j];
        }
      }
    } else {
      const T* row = hypothesis.coefficients + int64_t(t) * call.n_classes + first;
#pragma unroll
      for (int k = 0; k < kGroup; ++k) {
        weights[k] = k < count ? row[k] : T(0);
      }
    }
#pragma unroll
    for (int i = 0; i < kP; ++i) {
#pragma unroll
      for (int k = 0; k < kGroup; ++k) {
        moved[i][k] += column[i] * weights[k];
      }
    }
  }
}

// The losses of the points of this thread between `start` and `end`.
template <Loss kind, int kGroup, bool kStaged, class T>
__device__ __forceinline__ double sum_losses(const Lookahead<T>& call, const Hypothesis<T>& hypothesis, int64_t start,
                                             int64_t end) {
  constexpr int kP = kPoints<T>;
  const Points<T> points(start, end);
  RunningSoftmax<kind, T> softmaxes[kP];
  T links[kP];
  int targets[kP];  // -1 if the label is not a class
#pragma unroll
  for (int i = 0; i < kP; ++i) {
    links[i] = T(1);
    targets[i] = -1;
    if constexpr (needs_of(kind).targets) {
      const int64_t label = call.targets[points.index[i] * call.target_stride];
      targets[i] = label >= 0 && label < call.n_classes ? int(label) : -1;
    }
  }
  if (call.variance != nullptr) {
    find_links(call, hypothesis, points, links);
  }
  for (int first = 0; first < call.n_classes; first += kGroup) {
    const int count = call.n_classes - first < kGroup ? call.n_classes - first : kGroup;
    T moved[kP][kGroup];
    move_group<kGroup, kStaged>(call, hypothesis, points, first, count, moved);
#pragma unroll
    for (int i = 0; i < kP; ++i) {
      softmaxes[i].add(moved[i], first, count, links[i], targets[i]);
    }
  }
  double sum = 0.0;
#pragma unroll
  for (int i = 0; i < kP; ++i) {
    const RunningSoftmax<kind, T>& softmax = softmaxes[i];
    const T target = (softmax.label - softmax.best) * links[i];
    T value = loss<kind>(softmax.rest, softmax.moment, target, softmax.winner == targets[i]);
    if (needs_of(kind).targets && targets[i] < 0) {
      value = T(__builtin_nanf(""));
    }
    sum += start + i * kPointBlock + threadIdx.x < end ? double(value) : 0.0;
  }
  return sum;
}

// Pairs (part, hypothesis). Neighbouring blocks have the same part, whose columns are in cache.
template <Loss kind, int kGroup, bool kStaged, class T>
__global__ void __launch_bounds__(kPointBlock, 3) lookahead_loss_kernel(Lookahead<T> call) {
  LAPAL_DYN_SHARED(unsigned char, memory);
  LAPAL_SHARED(double, scratch, kPointWarps);
  const int64_t n_pairs = call.parts.n_parts * call.n_hypotheses;
  for (int64_t pair = blockIdx.x; pair < n_pairs; pair += gridDim.x) {
    const int64_t part = pair / call.n_hypotheses, m = pair % call.n_hypotheses;
    Hypothesis<T> hypothesis;
    if constexpr (kStaged) {
      hypothesis = stage<kGroup>(call, m, memory);
      __syncthreads();
    } else {
      hypothesis = in_place(call, m);
    }
    bool inside = true;
    for (int t = 0; t < call.batch_size; ++t) {
      inside = inside && hypothesis.rows[t] >= 0 && hypothesis.rows[t] < call.n_rows;
    }
    double sum = inside ? 0.0 : double(__builtin_nanf(""));
    const int64_t end = call.parts.end(part);
    for (int64_t start = inside ? call.parts.start(part) : end; start < end; start += kRoundPoints<T>) {
      sum += sum_losses<kind, kGroup, kStaged>(call, hypothesis, start, end);
    }
    // Its barriers also protect shared memory: the next hypothesis is written after all threads have read this one.
    sum = block_reduce<kPointBlock>(sum, 0.0, Sum(), scratch);
    if (threadIdx.x == 0) {
      call.partial_sums[pair] = sum;
    }
  }
}

}  // namespace lapal_ext
