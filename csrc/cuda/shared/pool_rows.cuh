// The parts of every selection step: products of the rows of a pool with vectors, and the best row of all.
//
//   products[k][n] = row_n . vector_k + offset_k
//
// Shapes: pool [N, D] in any storage dtype, vectors [D] -> products [K, N].
//
// Layout: pool rows are contiguous, at any distance; vectors are contiguous. If all of them are aligned to 16 bytes, a
// lane reads P elements in one instruction, and 32 lanes read the next 32 P. Otherwise the same elements are read one
// by one.
//
// Parallel over rows, kRowsAtOnce per warp: the rows share the loads of the vectors, and several loads are in flight.
// Each lane sums its own elements in order, then the lanes are added. The order depends on D and the dtypes only, so
// equal rows tie exactly, in every shard of a pool.
//
// The products are stored in memory, 2 K numbers per row besides the D of the pool. The next step uses another layout
// of rows; one kernel for both would need an instance for each pair of storage dtype and utility.
//
// Limit: memory, one read of the pool. On an H100 the arithmetic takes a twentieth of that time for a pool in float32,
// and a tenth in half precision.
#pragma once

#include "cuda/shared/reduce.cuh"

namespace lapal_ext {

constexpr int kPoolBlock = 256;  // threads
constexpr int kPoolWarps = kPoolBlock / kWarpSize;
constexpr int kRowsAtOnce = 4;

// Elements of S in the widest load.
template <class S>
constexpr int kPackSize = 16 / int(sizeof(S));

// The effect of the previous pick on the rows: c = Phi u + offset, logits += c g^T, variances -= beta c^2.
template <class T>
struct Effect {
  const T* u;  // [D]; null if the products are needed in any case
  int64_t n_features;
  const T* offset;
  const T* g;  // [C]
  int64_t n_classes;
  const T* beta;  // null if there are no variances
};

template <int kDirections, class T, class S>
struct PoolProducts {
  const S* pool;
  int64_t row_stride;
  int64_t n_rows;
  int64_t n_features;
  const T* vectors[kDirections];
  const T* offsets[kDirections];
  T* products;  // [kDirections, N]
  Effect<T> effect;
};

// Whether any of `size` values, or *other, is not zero. All threads of the block call it.
template <int kBlockSize, class T>
__device__ __forceinline__ bool any_nonzero(const T* values, int64_t size, const T* other, int* scratch) {
  int found = other != nullptr && *other != T(0);
  for (int64_t i = threadIdx.x; i < size; i += kBlockSize) {
    found |= values[i] != T(0);
  }
  return block_reduce<kBlockSize>(found, 0, Sum(), scratch) > 0;
}

// False if the rows do not change, as for the first pick. Then the pool is not read.
template <int kBlockSize, class T>
__device__ __forceinline__ bool moves(const Effect<T>& effect, int* scratch) {
  return effect.u == nullptr || (any_nonzero<kBlockSize>(effect.u, effect.n_features, effect.offset, scratch) &&
                                 any_nonzero<kBlockSize>(effect.g, effect.n_classes, effect.beta, scratch));
}

// kCount neighbours, of which `left` exist, followed by zeros.
template <bool kAligned, int kCount, class S>
__device__ __forceinline__ void load_values(const S* from, int64_t left, S (&values)[kCount]) {
  if (kAligned && left >= kCount) {
    const Pack<S, kCount> pack = load_pack<kCount>(from);
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      values[i] = pack.values[i];
    }
  } else {
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      values[i] = i < left ? from[i] : S{};
    }
  }
}

template <int kDirections, bool kAligned, class T, class S>
__global__ void __launch_bounds__(kPoolBlock, 1) pool_products_kernel(PoolProducts<kDirections, T, S> all) {
  constexpr int kPack = kPackSize<S>;
  constexpr int kPart = kPack < kPackSize<T> ? kPack : kPackSize<T>;  // of the vectors that is in registers at once
  LAPAL_SHARED(int, scratch, kPoolWarps);
  if (!moves<kPoolBlock>(all.effect, scratch)) {
    return;
  }
  const int lane = int(threadIdx.x) % kWarpSize;
  const int64_t warp = int64_t(blockIdx.x) * kPoolWarps + threadIdx.x / kWarpSize;
  const int64_t step = int64_t(gridDim.x) * kPoolWarps * kRowsAtOnce;
  for (int64_t first = warp * kRowsAtOnce; first < all.n_rows; first += step) {
    const S* rows[kRowsAtOnce];
    T sums[kDirections][kRowsAtOnce] = {};
#pragma unroll
    for (int r = 0; r < kRowsAtOnce; ++r) {
      // Rows after the last repeat it, so that all rows have the same loop.
      rows[r] = all.pool + (first + r < all.n_rows ? first + r : all.n_rows - 1) * all.row_stride;
    }
    for (int64_t j = lane * kPack; j < all.n_features; j += kWarpSize * kPack) {
      const int64_t left = all.n_features - j;
      S elements[kRowsAtOnce][kPack];
#pragma unroll
      for (int r = 0; r < kRowsAtOnce; ++r) {
        load_values<kAligned>(rows[r] + j, left, elements[r]);
      }
#pragma unroll
      for (int part = 0; part < kPack; part += kPart) {
#pragma unroll
        for (int k = 0; k < kDirections; ++k) {
          T factors[kPart];
          load_values<kAligned>(all.vectors[k] + j + part, left - part, factors);
#pragma unroll
          for (int r = 0; r < kRowsAtOnce; ++r) {
#pragma unroll
            for (int i = 0; i < kPart; ++i) {
              sums[k][r] += widen<T>(elements[r][part + i]) * factors[i];
            }
          }
        }
      }
    }
#pragma unroll
    for (int k = 0; k < kDirections; ++k) {
      const T offset = all.offsets[k] == nullptr ? T(0) : *all.offsets[k];
#pragma unroll
      for (int r = 0; r < kRowsAtOnce; ++r) {
        const T sum = warp_reduce(sums[k][r], Sum());
        if (lane == r && first + r < all.n_rows) {
          all.products[k * all.n_rows + first + r] = sum + offset;
        }
      }
    }
  }
}

// The mask of the rows that were picked before.
struct TakenRows {
  bool* rows;
  int64_t stride;

  template <class T>
  __device__ __forceinline__ Candidate<T> better_of(T utility, int64_t n, const Candidate<T>& best) const {
    return rows[n * stride] ? best : Better()(best, Candidate<T>{utility, n});
  }
};

// Stores the best row of all threads of the block to `candidates` [blocks].
template <int kBlockSize, class T>
__device__ __forceinline__ void store_candidate(Candidate<T> best, Candidate<T>* scratch, Candidate<T>* candidates) {
  best = block_reduce<kBlockSize>(best, no_candidate<T>(), Better(), scratch);
  if (threadIdx.x == 0) {
    candidates[blockIdx.x] = best;
  }
}

// Marks the best of the candidates as taken and stores it, or {-1, -inf} if there is none. One block.
template <class T>
__global__ void __launch_bounds__(kPoolBlock, 1) take_best_kernel(const Candidate<T>* candidates, int64_t n_candidates,
                                                                  TakenRows taken, int64_t* index, T* utility) {
  LAPAL_SHARED(Candidate<T>, scratch, kPoolWarps);
  Candidate<T> best = no_candidate<T>();
  for (int64_t i = threadIdx.x; i < n_candidates; i += kPoolBlock) {
    best = Better()(best, candidates[i]);
  }
  best = block_reduce<kPoolBlock>(best, no_candidate<T>(), Better(), scratch);
  if (threadIdx.x == 0) {
    *index = best.index;
    *utility = best.value;
    if (best.index >= 0) {
      taken.rows[best.index * taken.stride] = true;
    }
  }
}

}  // namespace lapal_ext
