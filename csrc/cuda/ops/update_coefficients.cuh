// The recursion that absorbs b labels into M hypotheses, in terms of their gram matrix only.
//
// For observation t, with column c and variance v of the present gram matrix:
//
//   g_t = a (e_y - softmax(f_t));  f_j += c_j g_t for j >= t;  s'_t = curvature(f_t);  beta_t = s'_t / (1 + s'_t v)
//   T_jt = beta_t c_j and gram_jk -= beta_t c_j c_k for j, k > t
//
// At the end, T^T H = g.
//
// Shapes: gram [M, b, b], logits [M, b, C], targets [M, b] -> H [M, b, C], T [M, b, b], beta [M, b], s' [M, b]; all
// contiguous.
//
// A block takes one hypothesis, in float64. For few classes the block is one warp, because the chain of observations
// waits for reductions rather than for arithmetic. Every kBlockSize-th class belongs to one thread in all rows, so only
// sums over classes and the gram matrix need barriers. As on the CPU, row t of the gram matrix is column t of its lower
// triangle, and f_t is computed when it is needed. The work is in shared memory, or in a workspace of at most
// kMaxWorkBytes if it does not fit. If a label is not a class, beta is NaN from that observation on.
//
// Limit: latency. Each observation waits for about three reductions and an exponential in each of about 6 iterations of
// its line search, and for six more reductions. Its b^2 C + b^3 / 6 multiply-adds in float64 take little time beside
// that.
#pragma once

#include "cuda/shared/reduce.cuh"
#include "shared/line_search_bracket.h"

namespace lapal_ext {

constexpr int kChainBlock = 256;                       // threads of a block for many classes
constexpr int64_t kMaxWorkBytes = int64_t(256) << 20;  // or the work of one block, if that is more

template <class T>
struct Recursion {
  const T* gram;
  const T* logits;
  const int64_t* targets;
  int64_t n_hypotheses, batch_size, n_classes;
  UpdateRule rule;
  double slack;       // kPsdSlack * eps of T
  double* workspace;  // null if the work is in shared memory
  T* coefficients;
  T* triangle;
  T* beta;
  T* weights;
};

// Two sums in one reduction.
struct TwoSums {
  double first, second;
};

struct AddBoth {
  __device__ __forceinline__ TwoSums operator()(const TwoSums& a, const TwoSums& b) const {
    return {a.first + b.first, a.second + b.second};
  }
};

__device__ __forceinline__ TwoSums shuffle_xor(const TwoSums& sums, int lane_mask) {
  return {shuffle_xor(sums.first, lane_mask), shuffle_xor(sums.second, lane_mask)};
}

// The work memory of one hypothesis.
struct Work {
  double* gram;       // [b, b], row t holds column t of the lower triangle
  double* steps;      // [b, C]
  double* logits;     // [C] of the observation, as are the residual and the terms
  double* residual;   // [C]
  double* terms;      // [C]
  double* beta;       // [b]
  double* variances;  // [b], before the batch

  __device__ __forceinline__ Work(double* memory, int64_t b, int64_t n_classes)
      : gram(memory),
        steps(gram + b * b),
        logits(steps + b * n_classes),
        residual(logits + n_classes),
        terms(residual + n_classes),
        beta(terms + n_classes),
        variances(beta + b) {}

  static __host__ __device__ int64_t size(int64_t b, int64_t n_classes) {
    return b * b + (b + 3) * n_classes + 2 * b;
  }
};

// The results of one observation: s' and beta.
struct Absorbed {
  double weight, beta;
};

// s, from the sum of the exponentials of the losing classes.
__device__ __forceinline__ double weight_of(Curvature curvature, double rest) {
  switch (curvature) {
    case Curvature::gaussian:
      return 1.0;
    case Curvature::categorical:
      return curvature_weight(rest);
  }
  return double(__builtin_nanf(""));
}

// Functions that all threads of a block call together. `scratch` holds two numbers for each warp.
template <int kBlockSize>
struct Block {
  double* scratch;

  template <class T, class Join>
  __device__ __forceinline__ T reduce(T value, T identity, Join join) const {
    return block_reduce<kBlockSize>(value, identity, join, reinterpret_cast<T*>(scratch));
  }

  // Writes the exponentials relative to the winner to `terms`. The first sum leaves out the winner, the second the
  // target.
  __device__ __forceinline__ TwoSums sum_terms(const double* logits, int64_t n_classes, int64_t target,
                                               double* terms) const {
    Candidate<double> winner = no_candidate<double>();
    for (int64_t k = threadIdx.x; k < n_classes; k += kBlockSize) {
      winner = Better()(winner, Candidate<double>{logits[k], k});
    }
    winner = reduce(winner, no_candidate<double>(), Better());
    TwoSums sums = {0.0, 0.0};
    for (int64_t k = threadIdx.x; k < n_classes; k += kBlockSize) {
      const double term = exp_nonpositive(logits[k] - winner.value);
      terms[k] = term;
      sums.first += k == winner.index ? 0.0 : term;
      sums.second += k == target ? 0.0 : term;
    }
    return reduce(sums, TwoSums{0.0, 0.0}, AddBoth());
  }

  // The same as line_search() of cpu/passes/line_search.h.
  __device__ __forceinline__ double line_search(const Work& work, int64_t n_classes, double variance, double r_target,
                                                double gamma) const {
    if (gamma == 0.0) {
      return 0.0;
    }
    const double* logits = work.logits;
    const double* r = work.residual;
    double* terms = work.terms;
    double norm = 0.0;
    for (int64_t k = threadIdx.x; k < n_classes; k += kBlockSize) {
      norm += r[k] * r[k];
    }
    norm = reduce(norm, 0.0, Sum());
    LineSearchBracket bracket(gamma);
    for (int iteration = 0; iteration < kMaxIterations; ++iteration) {
      const double reach = bracket.a * variance;
      double best = -double(__builtin_inff());
      for (int64_t k = threadIdx.x; k < n_classes; k += kBlockSize) {
        terms[k] = logits[k] + reach * r[k];
        best = terms[k] > best ? terms[k] : best;
      }
      best = reduce(best, -double(__builtin_inff()), Maximum());
      TwoSums sums = {0.0, 0.0};  // of the exponentials, and of these times the gap
      for (int64_t k = threadIdx.x; k < n_classes; k += kBlockSize) {
        terms[k] = exp_nonpositive(terms[k] - best);
        sums.first += terms[k];
        sums.second += terms[k] * (r[k] - r_target);
      }
      sums = reduce(sums, TwoSums{0.0, 0.0}, AddBoth());
      const double total = sums.first, mean = sums.second / total;
      double spread = 0.0;
      for (int64_t k = threadIdx.x; k < n_classes; k += kBlockSize) {
        const double distance = (r[k] - r_target) - mean;
        spread += terms[k] * (distance * distance);
      }
      spread = reduce(spread, 0.0, Sum());
      const double slope = mean + bracket.a * norm / gamma;
      const double steepness = variance * (spread / total) + norm / gamma;
      if (bracket.advance(slope, steepness)) {
        break;
      }
    }
    return bracket.a;
  }

  // Absorbs observation t into logits and steps.
  template <class T>
  __device__ __forceinline__ Absorbed absorb(const Recursion<T>& call, const Work& work, int64_t m, int64_t t) const {
    const int64_t b = call.batch_size, n_classes = call.n_classes;
    const double* column = work.gram + t * b;
    const T* logits = call.logits + (m * b + t) * n_classes;
    double* step = work.steps + t * n_classes;
    for (int64_t k = threadIdx.x; k < n_classes; k += kBlockSize) {
      double sum = double(logits[k]);
      for (int64_t s = 0; s < t; ++s) {
        sum += work.gram[s * b + t] * work.steps[s * n_classes + k];
      }
      work.logits[k] = sum;
    }
    const int64_t target = call.targets[m * b + t];
    const bool is_class = target >= 0 && target < n_classes;
    const bool is_variance = column[t] >= -call.slack * work.variances[t];
    const double variance = is_class && is_variance ? column[t] : double(__builtin_nanf(""));
    const TwoSums sums = sum_terms(work.logits, n_classes, target, work.terms);
    const double inverse = 1.0 / (1.0 + sums.first), r_target = sums.second * inverse;
    for (int64_t k = threadIdx.x; k < n_classes; k += kBlockSize) {
      work.residual[k] = k == target ? r_target : -(work.terms[k] * inverse);
    }
    double length = double(__builtin_nanf(""));
    switch (call.rule.step) {
      case Step::newton:
        length = call.rule.gamma / (1.0 + weight_of(call.rule.curvature, sums.first) * variance);
        break;
      case Step::line_search:
        length = line_search(work, n_classes, variance, r_target, call.rule.gamma);
        break;
    }
    for (int64_t k = threadIdx.x; k < n_classes; k += kBlockSize) {
      step[k] = length * work.residual[k];
      work.logits[k] += column[t] * step[k];
    }
    const double rest = call.rule.curvature == Curvature::gaussian
                            ? 0.0  // not needed
                            : sum_terms(work.logits, n_classes, target, work.terms).first;
    const double weight = weight_of(call.rule.curvature, rest);
    const double scale = 1.0 + weight * variance;
    return {weight, scale > 0.0 ? weight / scale : double(__builtin_nanf(""))};
  }
};

// gram_jk -= beta c_j c_k for j, k > t.
template <int kBlockSize>
__device__ __forceinline__ void downdate(const Work& work, int64_t b, int64_t t, double beta) {
  const double* column = work.gram + t * b;
  const int64_t left = b - t - 1;
  for (int64_t i = threadIdx.x; i < left * left; i += kBlockSize) {
    const int64_t k = t + 1 + i / left, j = t + 1 + i % left;
    if (j >= k) {
      work.gram[k * b + j] -= (beta * column[j]) * column[k];
    }
  }
}

template <int kBlockSize, class T>
__global__ void __launch_bounds__(kBlockSize, 2) update_coefficients_kernel(Recursion<T> call) {
  LAPAL_DYN_SHARED(double, memory);
  LAPAL_SHARED(double, scratch, 2 * kBlockSize / kWarpSize);
  const int64_t b = call.batch_size, n_classes = call.n_classes;
  double* own = call.workspace == nullptr ? memory : call.workspace + blockIdx.x * Work::size(b, n_classes);
  const Work work(own, b, n_classes);
  const Block<kBlockSize> block = {scratch};
  for (int64_t m = blockIdx.x; m < call.n_hypotheses; m += gridDim.x) {
    for (int64_t i = threadIdx.x; i < b * b; i += kBlockSize) {
      const int64_t j = i / b, t = i % b;
      if (j >= t) {
        work.gram[t * b + j] = double(call.gram[m * b * b + i]);
      }
      if (j == t) {
        work.variances[t] = double(call.gram[m * b * b + i]);
      }
    }
    __syncthreads();
    for (int64_t t = 0; t < b; ++t) {
      const Absorbed absorbed = block.absorb(call, work, m, t);
      downdate<kBlockSize>(work, b, t, absorbed.beta);
      if (threadIdx.x == 0) {
        work.beta[t] = absorbed.beta;
        call.beta[m * b + t] = T(absorbed.beta);
        call.weights[m * b + t] = T(absorbed.weight);
      }
      __syncthreads();
    }
    for (int64_t i = threadIdx.x; i < b * b; i += kBlockSize) {
      const int64_t j = i / b, t = i % b;
      const double below = j > t ? work.gram[t * b + j] * work.beta[t] : 0.0;
      call.triangle[m * b * b + i] = j == t ? T(1) : T(below);
    }
    for (int64_t k = threadIdx.x; k < n_classes; k += kBlockSize) {
      for (int64_t t = b - 1; t >= 0; --t) {
        double sum = work.steps[t * n_classes + k];
        for (int64_t j = t + 1; j < b; ++j) {
          sum -= (work.gram[t * b + j] * work.beta[t]) * work.steps[j * n_classes + k];
        }
        work.steps[t * n_classes + k] = sum;
        call.coefficients[(m * b + t) * n_classes + k] = T(sum);
      }
    }
    __syncthreads();  // the next hypothesis overwrites this one
  }
}

}  // namespace lapal_ext
