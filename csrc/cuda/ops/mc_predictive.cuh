// Monte Carlo predictive and its mean entropy, streamed over the samples.
//
//   mean_n = 1/S sum_s softmax(z_n + sqrt(v_n) noise_s),  entropy_n = 1/S sum_s entropy(softmax(z_n + sqrt(v_n)
//   noise_s))
//
// Shapes: logits z [N, C] with any strides, variance v [N], noise [S, C] contiguous -> mean [N, C], entropy [N].
//
// A warp takes a row. The rows of a block share tiles of the noise in shared memory. For few classes, each lane
// computes samples of its own, and the lanes are added once per tile, with class k in lane k. For many classes, the
// warp computes one sample at a time, with every 32nd class in a lane. It keeps its sums in registers for kChunk
// samples, then in shared memory. Rows that are too long for that are computed 512 classes at a time, and the softmax
// of each sample is computed again for each of these.
//
// The probabilities of at most kChunk samples of a lane are added in the dtype of the inputs, and these sums in
// float64. One logarithm serves kProduct samples: it is taken of the product of their partition functions. The order of
// all sums depends on S and C only.
//
// Limit: arithmetic. One exponential per (row, sample, class) and about 12 other operations; for many classes also 15
// shuffles per (row, sample). Memory moves N C numbers twice, and each block reads the noise.
#pragma once

#include "cuda/shared/reduce.cuh"
#include "cuda/shared/row_tile.cuh"

namespace lapal_ext {

constexpr int kSampleRounds = 8;  // samples of a lane in one tile, for few classes
constexpr int kTileSamples = kSampleRounds * kWarpSize;
constexpr int kNoiseBytes = 16 << 10;  // of a tile, for many classes
constexpr int kChunk = 16;             // samples
constexpr int kProduct = 4;  // samples per logarithm: for up to a billion classes, the product fits in a float
constexpr int kSampleBlock = kRowWarps * kWarpSize;
static_assert(kSampleBlock == kTileRows, "TileWalk takes a step of kTileRows");

template <class T>
struct SampledRows {
  LogitRows<T> logits;
  const T* variance;
  int64_t variance_stride;
  const T* noise;  // [S, C]
  int64_t n_samples;
  int tile_samples;  // for many classes
  T* mean;           // [N, C]
  T* entropy;        // [N]
};

template <class T>
__device__ __forceinline__ T deviation_of(const SampledRows<T>& rows, int64_t n) {
  const T variance = rows.variance[n * rows.variance_stride];
  return square_root(variance < T(0) ? T(0) : variance);
}

// Sum of the entropies of samples.
template <class T>
struct EntropySum {
  double total = 0.0;
  T product_less_one = T(0);  // product of partition functions, less one
  T energy = T(0);            // sum of the mean distances from the largest logit, <= 0
  int count = 0;

  __device__ __forceinline__ void add(T rest, T mean_distance) {
    product_less_one += rest + product_less_one * rest;
    energy += mean_distance;
    if (++count == kProduct) {
      flush();
    }
  }
  __device__ __forceinline__ void flush() {
    total += double(log1p_nonnegative(product_less_one) - energy);
    product_less_one = T(0);
    energy = T(0);
    count = 0;
  }
};

// A sample per lane; at most kClasses classes, and at most as many as lanes.
template <int kClasses, class T>
__global__ void __launch_bounds__(kSampleBlock, 2) mc_predictive_lane_kernel(SampledRows<T> rows) {
  static_assert(kClasses <= kWarpSize, "lane k keeps the sum of class k");
  LAPAL_DYN_SHARED(T, tile);
  LAPAL_SHARED(T, block_logits, kRowWarps * kWarpSize);
  const int lane = int(threadIdx.x) % kWarpSize, warp = int(threadIdx.x) / kWarpSize;
  const int n_classes = int(rows.logits.n_classes), length = tile_row_length(n_classes);
  T* logits = block_logits + warp * kWarpSize;
  for (int64_t start = int64_t(blockIdx.x) * kRowWarps; start < rows.logits.n_rows;
       start += int64_t(gridDim.x) * kRowWarps) {
    const int64_t n = start + warp;
    const bool has_row = n < rows.logits.n_rows;
    const T deviation = has_row ? deviation_of(rows, n) : T(0);
    if (has_row && lane < n_classes) {
      logits[lane] = rows.logits.data[n * rows.logits.row_stride + lane * rows.logits.class_stride];
    }
    double mean = 0.0;  // of class `lane`
    EntropySum<T> entropies;
    for (int64_t first = 0; first < rows.n_samples; first += kTileSamples) {
      const int count = rows.n_samples - first < kTileSamples ? int(rows.n_samples - first) : kTileSamples;
      for (TileWalk at(int(threadIdx.x), n_classes); at.major < count; at.advance(n_classes)) {
        tile[at.major * length + at.minor] = rows.noise[(first + at.major) * n_classes + at.minor];
      }
      __syncthreads();
      if (has_row) {
        T sums[kClasses];
#pragma unroll
        for (int k = 0; k < kClasses; ++k) {
          sums[k] = T(0);
        }
        for (int s = lane; s < count; s += kWarpSize) {
          const T* noise = tile + s * length;
          T drawn[kClasses];
          T best = -T(__builtin_inff());
#pragma unroll
          for (int k = 0; k < kClasses; ++k) {
            if (k < n_classes) {
              drawn[k] = logits[k] + deviation * noise[k];
              best = drawn[k] > best ? drawn[k] : best;
            }
          }
          T total = T(0), energy = T(0), ties = T(-1);  // classes as large as the largest, product_less_one the first
#pragma unroll
          for (int k = 0; k < kClasses; ++k) {
            if (k < n_classes) {
              const T shifted = drawn[k] - best;
              const T term = exp_nonpositive(shifted);
              const bool loses = !(shifted >= T(0));  // a NaN is in the sum
              drawn[k] = term;
              total += loses ? term : T(0);
              ties += loses ? T(0) : T(1);
              energy += term * shifted;
            }
          }
          const T rest = total + ties;
          const T inverse = T(1) / (T(1) + rest);
          entropies.add(rest, energy * inverse);
#pragma unroll
          for (int k = 0; k < kClasses; ++k) {
            if (k < n_classes) {
              sums[k] += drawn[k] * inverse;
            }
          }
        }
#pragma unroll
        for (int k = 0; k < kClasses; ++k) {
          const T sum = warp_reduce(sums[k], Sum());
          mean += k == lane ? double(sum) : 0.0;
        }
      }
      __syncthreads();  // the next tile overwrites this one
    }
    if (has_row) {
      entropies.flush();
      const double entropy = warp_reduce(entropies.total, Sum());
      if (lane < n_classes) {
        rows.mean[n * n_classes + lane] = T(mean / double(rows.n_samples));
      }
      if (lane == 0) {
        rows.entropy[n] = T(entropy / double(rows.n_samples));
      }
    }
  }
}

// The sums of one sample over all lanes of a warp.
template <class T>
struct SampleSums {
  T rest, energy;
};

// `ties` counts the classes of the lane that equal the largest. The first lane with one leaves out the winner.
template <class T>
__device__ __forceinline__ SampleSums<T> join_sample(T total, T ties, T energy) {
  const unsigned before = (1u << (threadIdx.x % kWarpSize)) - 1;
  const bool leads = ties > T(0);
  const unsigned leaders = __ballot_sync(kFullWarp, leads);
  const bool is_first = leads && (leaders & before) == 0;
  return {warp_reduce(total + (is_first ? ties - T(1) : ties), Sum()), warp_reduce(energy, Sum())};
}

// A sample per warp, with kPerLane classes of each lane in registers.
template <int kPerLane, class T>
__global__ void __launch_bounds__(kSampleBlock, 2) mc_predictive_warp_kernel(SampledRows<T> rows) {
  LAPAL_DYN_SHARED(double, means);
  const int lane = int(threadIdx.x) % kWarpSize, warp = int(threadIdx.x) / kWarpSize;
  const int n_classes = int(rows.logits.n_classes);
  T* tile = reinterpret_cast<T*>(means + kRowWarps * n_classes);
  double* mean = means + warp * n_classes;  // each class belongs to one lane
  for (int64_t start = int64_t(blockIdx.x) * kRowWarps; start < rows.logits.n_rows;
       start += int64_t(gridDim.x) * kRowWarps) {
    const int64_t n = start + warp;
    const bool has_row = n < rows.logits.n_rows;
    const T deviation = has_row ? deviation_of(rows, n) : T(0);
    T logits[kPerLane];
    load_classes(rows.logits, has_row ? n : 0, logits);
    EntropySum<T> entropies;
    T sums[kPerLane];
#pragma unroll
    for (int i = 0; i < kPerLane; ++i) {
      sums[i] = T(0);
    }
    for (int k = lane; k < n_classes; k += kWarpSize) {
      mean[k] = 0.0;
    }
    const auto flush = [&] {
#pragma unroll
      for (int i = 0; i < kPerLane; ++i) {
        const int k = i * kWarpSize + lane;
        if (k < n_classes) {
          mean[k] += double(sums[i]);
        }
        sums[i] = T(0);
      }
    };
    for (int64_t first = 0; first < rows.n_samples; first += rows.tile_samples) {
      const int count = rows.n_samples - first < rows.tile_samples ? int(rows.n_samples - first) : rows.tile_samples;
      for (int i = int(threadIdx.x); i < count * n_classes; i += kSampleBlock) {
        tile[i] = rows.noise[first * n_classes + i];
      }
      __syncthreads();
      for (int s = 0; has_row && s < count; ++s) {
        const T* noise = tile + s * n_classes;
        T drawn[kPerLane];
        T best = -T(__builtin_inff());
#pragma unroll
        for (int i = 0; i < kPerLane; ++i) {
          const int k = i * kWarpSize + lane;
          drawn[i] = k < n_classes ? logits[i] + deviation * noise[k] : T(0);
          best = k < n_classes && drawn[i] > best ? drawn[i] : best;
        }
        best = warp_reduce(best, Maximum());
        T total = T(0), energy = T(0), ties = T(0);
#pragma unroll
        for (int i = 0; i < kPerLane; ++i) {
          const bool counts = i * kWarpSize + lane < n_classes;
          const T shifted = drawn[i] - best;
          const T term = counts ? exp_nonpositive(shifted) : T(0);
          const bool loses = !(shifted >= T(0));  // a NaN is in the sum
          drawn[i] = term;
          total += loses ? term : T(0);
          ties += counts && !loses ? T(1) : T(0);
          energy += counts ? term * shifted : T(0);
        }
        const SampleSums<T> sample = join_sample(total, ties, energy);
        const T inverse = T(1) / (T(1) + sample.rest);
        entropies.add(sample.rest, sample.energy * inverse);
#pragma unroll
        for (int i = 0; i < kPerLane; ++i) {
          sums[i] += drawn[i] * inverse;
        }
        if ((first + s) % kChunk == kChunk - 1) {
          flush();
        }
      }
      __syncthreads();  // the next tile overwrites this one
    }
    if (has_row) {
      flush();
      entropies.flush();
      for (int k = lane; k < n_classes; k += kWarpSize) {
        rows.mean[n * n_classes + k] = T(mean[k] / double(rows.n_samples));
      }
      if (lane == 0) {
        rows.entropy[n] = T(entropies.total / double(rows.n_samples));
      }
    }
  }
}

// A sample per warp, for rows of any length: kPerLane sums of each lane at a time.
template <class T>
__global__ void __launch_bounds__(kSampleBlock, 2) mc_predictive_long_kernel(SampledRows<T> rows) {
  constexpr int kPerLane = 16;
  const int lane = int(threadIdx.x) % kWarpSize;
  const int64_t n_classes = rows.logits.n_classes, stride = rows.logits.class_stride;
  for (int64_t n = first_row_of_warp(); n < rows.logits.n_rows; n += int64_t(gridDim.x) * kRowWarps) {
    const T* logits = rows.logits.data + n * rows.logits.row_stride;
    const T deviation = deviation_of(rows, n);
    EntropySum<T> entropies;
    for (int64_t begin = 0; begin < n_classes; begin += kPerLane * kWarpSize) {
      double mean[kPerLane];
#pragma unroll
      for (int i = 0; i < kPerLane; ++i) {
        mean[i] = 0.0;
      }
      for (int64_t s = 0; s < rows.n_samples; ++s) {
        const T* noise = rows.noise + s * n_classes;
        T best = -T(__builtin_inff());
        for (int64_t k = lane; k < n_classes; k += kWarpSize) {
          const T drawn = logits[k * stride] + deviation * noise[k];
          best = drawn > best ? drawn : best;
        }
        best = warp_reduce(best, Maximum());
        T total = T(0), energy = T(0), ties = T(0);
        for (int64_t k = lane; k < n_classes; k += kWarpSize) {
          const T shifted = logits[k * stride] + deviation * noise[k] - best;
          const T term = exp_nonpositive(shifted);
          const bool loses = !(shifted >= T(0));
          total += loses ? term : T(0);
          ties += loses ? T(0) : T(1);
          energy += term * shifted;
        }
        const SampleSums<T> sample = join_sample(total, ties, energy);
        const T inverse = T(1) / (T(1) + sample.rest);
        if (begin == 0) {
          entropies.add(sample.rest, sample.energy * inverse);
        }
#pragma unroll
        for (int i = 0; i < kPerLane; ++i) {
          const int64_t k = begin + i * kWarpSize + lane;
          if (k < n_classes) {
            mean[i] += double(exp_nonpositive(logits[k * stride] + deviation * noise[k] - best) * inverse);
          }
        }
      }
#pragma unroll
      for (int i = 0; i < kPerLane; ++i) {
        const int64_t k = begin + i * kWarpSize + lane;
        if (k < n_classes) {
          rows.mean[n * n_classes + k] = T(mean[i] / double(rows.n_samples));
        }
      }
    }
    entropies.flush();
    if (lane == 0) {
      rows.entropy[n] = T(entropies.total / double(rows.n_samples));
    }
  }
}

}  // namespace lapal_ext
