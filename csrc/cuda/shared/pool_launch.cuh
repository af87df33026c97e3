// The launches of the kernels of pool_rows.cuh.
#pragma once

#include "cuda/shared/launch.cuh"
#include "cuda/shared/pool_rows.cuh"
#include "torch/rows.h"

namespace lapal_ext {

inline TakenRows taken_rows(const torch::stable::Tensor& taken) {
  return {taken.mutable_data_ptr<bool>(), taken.stride(0)};
}

// Room for one candidate per block.
template <class T>
torch::stable::Tensor new_candidates(const torch::stable::Tensor& like, unsigned n_blocks) {
  static_assert(sizeof(Candidate<T>) == 2 * sizeof(int64_t), "a candidate takes two numbers of an int64 tensor");
  return torch::stable::new_empty(like, {2 * int64_t(n_blocks)}, torch::headeronly::ScalarType::Long);
}

template <class T>
Candidate<T>* candidates_of(const torch::stable::Tensor& candidates) {
  return reinterpret_cast<Candidate<T>*>(candidates.mutable_data_ptr<int64_t>());
}

template <int kDirections, class T, class S>
bool is_aligned(const PoolProducts<kDirections, T, S>& all) {
  uintptr_t bits = reinterpret_cast<uintptr_t>(all.pool) | uintptr_t(all.row_stride) * sizeof(S);
  for (const T* vector : all.vectors) {
    bits |= reinterpret_cast<uintptr_t>(vector);
  }
  return bits % 16 == 0;
}

// Computes `all.products` from a pool with contiguous rows.
template <int kDirections, class T, class S>
void multiply_rows(const Launch& launch, PoolProducts<kDirections, T, S> all) {
  constexpr int64_t kBlockRows = kPoolWarps * kRowsAtOnce;
  const unsigned grid = launch.grid((all.n_rows + kBlockRows - 1) / kBlockRows);
  if (is_aligned(all)) {
    LAPAL_LAUNCH((pool_products_kernel<kDirections, true, T, S>), grid, kPoolBlock, 0, launch.stream(), all);
  } else {
    LAPAL_LAUNCH((pool_products_kernel<kDirections, false, T, S>), grid, kPoolBlock, 0, launch.stream(), all);
  }
  LAPAL_CHECK_LAUNCH();
}

// The products [K, N] of a pool in any storage dtype with contiguous rows. `vectors` are contiguous. An offset may be
// null.
template <int kDirections, class T>
void multiply_pool(const Launch& launch, const torch::stable::Tensor& pool, const T* const (&vectors)[kDirections],
                   const T* const (&offsets)[kDirections], const Effect<T>& effect, T* products, const char* op) {
  dispatch_storage(pool.scalar_type(), op, [&](auto storage) {
    using storage_t = typename decltype(storage)::type;
    PoolProducts<kDirections, T, Bits<storage_t>> all{};
    all.pool = reinterpret_cast<const Bits<storage_t>*>(pool.const_data_ptr<storage_t>());
    all.row_stride = pool.stride(0);
    all.n_rows = pool.size(0);
    all.n_features = pool.size(1);
    std::copy(vectors, vectors + kDirections, all.vectors);
    std::copy(offsets, offsets + kDirections, all.offsets);
    all.products = products;
    all.effect = effect;
    multiply_rows(launch, all);
  });
}

template <class T>
void take_best(const Launch& launch, const Candidate<T>* candidates, unsigned n_blocks, const TakenRows& taken,
               int64_t* index, T* utility) {
  LAPAL_LAUNCH(take_best_kernel<T>, 1, kPoolBlock, 0, launch.stream(), candidates, int64_t(n_blocks), taken, index,
               utility);
  LAPAL_CHECK_LAUNCH();
}

}  // namespace lapal_ext
