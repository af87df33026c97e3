// What every selection step is made of: products of a pool's rows with a vector, and the best row of all.
//
//   products[k][n] = row_n . vector_k + offset_k
//
// Shapes: pool [N, D] in any storage dtype, vectors [D] -> products [K, N].
//
// Layout: pool rows contiguous, any distance apart; vectors contiguous. Where all of them are aligned to 16 bytes, a
// lane reads P elements in one instruction, and 32 lanes the next 32 P; elsewhere the same elements one by one.
//
// Parallel over rows, kRowsAtOnce in a warp: they share what is read of the vectors, and keep enough loads under way.
// Each lane sums its own elements in order, then the lanes are joined: the order depends on D and the dtypes alone, so
// equal rows tie exactly wherever they lie, in whatever shard of a pool.
//
// The products go through memory, 2 K numbers per row beside the D of the pool: the step that comes next takes rows in
// another way, and fused with it there would be a kernel for each pair of storage dtype and utility.
//
// Limit: memory, one read of the pool. On an H100 the arithmetic is a twentieth of that time for a pool in float32, a
// tenth in half precision.
#pragma once

#include "cuda/shared/reduce.cuh"

namespace lapal_ext {

constexpr int kPoolBlock = 256;  // threads
constexpr int kPoolWarps = kPoolBlock / kWarpSize;
constexpr int kRowsAtOnce = 4;

// Elements of S in the widest load.
template <class S>
constexpr int kPackSize = 16 / int(sizeof(S));

// What the previous pick does to the rows: c = Phi u + offset, times g on the logits, times beta c on the variances.
template <class T>
struct Effect {
  const T* u;  // [D]; null where the products count whatever they are
  int64_t n_features;
  const T* offset;
  const T* g;  // [C]
  int64_t n_classes;
  const T* beta;  // null where there are no variances
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

// Whether any of `size` values, or the one behind `other`, is not zero; by all threads of the block.
template <int kBlockSize, class T>
__device__ __forceinline__ bool any_nonzero(const T* values, int64_t size, const T* other, int* scratch) {
  int found = other != nullptr && *other != T(0);
  for (int64_t i = threadIdx.x; i < size; i += kBlockSize) {
    found |= values[i] != T(0);
  }
  return block_reduce<kBlockSize>(found, 0, Sum(), scratch) > 0;
}

// False where the rows stay as they are, as at the first pick: then the pool is not read.
template <int kBlockSize, class T>
__device__ __forceinline__ bool moves(const Effect<T>& effect, int* scratch) {
  return effect.u == nullptr || (any_nonzero<kBlockSize>(effect.u, effect.n_features, effect.offset, scratch) &&
                                 any_nonzero<kBlockSize>(effect.g, effect.n_classes, effect.beta, scratch));
}

// kCount neighbours, of which `left` are there; zeros behind them.
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
  constexpr int kPart = kPack < kPackSize<T> ? kPack : kPackSize<T>;  // of the vectors in registers at once
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
      // Behind the last row, the last one again: no row takes another path.
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

// Rows that may not be picked.
struct TakenRows {
  bool* rows;
  int64_t stride;

  template <class T>
  __device__ __forceinline__ Candidate<T> better_of(T utility, int64_t n, const Candidate<T>& best) const {
    return rows[n * stride] ? best : Better()(best, Candidate<T>{utility, n});
  }
};

// The best row that any thread of the block has seen, to `candidates` [blocks].
template <int kBlockSize, class T>
__device__ __forceinline__ void store_candidate(Candidate<T> best, Candidate<T>* scratch, Candidate<T>* candidates) {
  best = block_reduce<kBlockSize>(best, no_candidate<T>(), Better(), scratch);
  if (threadIdx.x == 0) {
    candidates[blockIdx.x] = best;
  }
}

// Takes the best of the candidates; {-1, -inf} where there is none. One block.
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
