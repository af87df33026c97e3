// One pick of BAIT with the binary surrogate of the Fisher information: one pass over the pool.
//
//   a = Phi u + u_offset;  c = Phi w + w_offset;  h -= beta a^2;  q += beta a (beta a u^T F u - 2 c)
//
// The pick is the free row with the largest gain s q / (1 + s h).
//
// Shapes: pool [N, D] in any storage dtype, u and w [D], curvature s, h, q and taken [N].
//
// Layout: pool rows are contiguous, all else has any strides.
//
// Three launches: a and c, both while a row is in registers (pool_rows.cuh); then h, q and the gain, one row per
// thread, and the best row of each block; then the best of all blocks. Workspace: a and c [2, N] and a candidate per
// block. Blocks share the tiles of rows in grid-stride loops. The order of candidates is total, so the pick does not
// depend on the grid.
//
// Limit: memory, one read of the pool and 9 numbers per row, which is a few percent of that.
#pragma once

#include "cuda/shared/pool_rows.cuh"

namespace lapal_ext {

constexpr int kBaitBlock = 128;  // threads, a row each

template <class T>
struct BaitRows {
  int64_t n_rows;
  const T* along_u;  // a [N]
  const T* along_w;  // c [N]
  Effect<T> effect;
  const T* fisher_norm;
  const T* curvature;
  int64_t curvature_stride;
  T* h;
  int64_t h_stride;
  T* q;
  int64_t q_stride;
  TakenRows taken;
  Candidate<T>* candidates;  // [blocks]
};

template <class T>
__global__ void __launch_bounds__(kBaitBlock, 1) bait_kernel(BaitRows<T> rows) {
  LAPAL_SHARED(int, scratch, kBaitBlock / kWarpSize);
  LAPAL_SHARED(Candidate<T>, best_scratch, kBaitBlock / kWarpSize);
  const bool any_move = moves<kBaitBlock>(rows.effect, scratch);
  const T beta = *rows.effect.beta, fisher_norm = *rows.fisher_norm;
  const int64_t step = int64_t(gridDim.x) * kBaitBlock;
  Candidate<T> best = no_candidate<T>();
  for (int64_t n = int64_t(blockIdx.x) * kBaitBlock + threadIdx.x; n < rows.n_rows; n += step) {
    T h = rows.h[n * rows.h_stride], q = rows.q[n * rows.q_stride];
    if (any_move) {
      const T along_u = rows.along_u[n], shrunk = beta * along_u;
      h -= shrunk * along_u;
      q += shrunk * (shrunk * fisher_norm - T(2) * rows.along_w[n]);
      rows.h[n * rows.h_stride] = h;
      rows.q[n * rows.q_stride] = q;
    }
    const T curvature = rows.curvature[n * rows.curvature_stride];
    best = rows.taken.better_of(curvature * q / (T(1) + curvature * h), n, best);
  }
  store_candidate<kBaitBlock>(best, best_scratch, rows.candidates);
}

}  // namespace lapal_ext
