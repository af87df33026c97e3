// One pick of BAIT with the binary surrogate of the Fisher information: one pass over the pool.
//
//   a = Phi u + u_offset;  c = Phi w + w_offset;  h -= beta a^2;  q += beta a (beta a u^T F u - 2 c)
//
// The pick is the free row with the largest gain s q / (1 + s h).
//
// Shapes: pool [N, D] in any storage dtype, u and w [D], curvature s, h, q and taken [N].
//
// Layout: pool rows are contiguous. Both dot products of a row are computed while the row is in the first-level cache,
// each in one fixed order. Then h, q and the gain are computed with rows in lanes. An incomplete block is computed like
// a complete one, so equal rows have equal gains.
//
// Parallel over tiles of a fixed size. The best rows of the tiles are compared in order (cpu/pool/rows.h).
//
// Limit: memory, one read of the pool.
#include "torch/arguments/bait_step_.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <tuple>

#include "cpu/pool/rows.h"
#include "cpu/simd/lanes.h"
#include "torch/dispatch.h"

namespace {

using namespace lapal_ext;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// The data of one pass: pointers and strides of the tensors.
template <class T, class S>
struct Pass {
  PoolRows<S> pool;
  bool moves;  // false if the previous pick changes nothing: then the pool is not read
  Direction<T> u;
  Direction<T> w;
  T fisher_norm;
  T beta;
  const T* curvature;
  int64_t curvature_stride;
  T* h;
  int64_t h_stride;
  T* q;
  int64_t q_stride;
  TakenRows taken;
};

// Rows [start, start + rows); `scratch` holds two lines of kMaxTileRows products.
template <class T, class S>
LAPAL_HD Best bait_tile(const Pass<T, S>& pass, int64_t start, int64_t rows, T* scratch) {
  constexpr int kL = kLanes<T>;
  if (pass.moves) {
    multiply_rows(pass.pool, start, rows, {pass.u, pass.w}, scratch, kMaxTileRows);
  }
  Best best;
  for (int64_t i = 0; i < rows; i += kL) {
    const int valid = int(std::min<int64_t>(kL, rows - i));
    alignas(kBlockBytes) T h[kL];
    alignas(kBlockBytes) T q[kL];
    alignas(kBlockBytes) T curvature[kL];
    alignas(kBlockBytes) T gains[kL];
    const int64_t first = start + i;
    load_lanes(pass.h + first * pass.h_stride, pass.h_stride, valid, h);
    load_lanes(pass.q + first * pass.q_stride, pass.q_stride, valid, q);
    load_lanes(pass.curvature + first * pass.curvature_stride, pass.curvature_stride, valid, curvature);
    if (pass.moves) {
      alignas(kBlockBytes) T along_u[kL];
      alignas(kBlockBytes) T along_w[kL];
      load_lanes(scratch + i, 1, valid, along_u);
      load_lanes(scratch + kMaxTileRows + i, 1, valid, along_w);
#pragma omp simd
      for (int lane = 0; lane < kL; ++lane) {
        const T shrunk = pass.beta * along_u[lane];
        h[lane] -= shrunk * along_u[lane];
        q[lane] += shrunk * (shrunk * pass.fisher_norm - T(2) * along_w[lane]);
      }
      store_lanes(h, pass.h_stride, valid, pass.h + first * pass.h_stride);
      store_lanes(q, pass.q_stride, valid, pass.q + first * pass.q_stride);
    }
#pragma omp simd
    for (int lane = 0; lane < kL; ++lane) {
      gains[lane] = curvature[lane] * q[lane] / (T(1) + curvature[lane] * h[lane]);
    }
    pass.taken.update_best(gains, first, valid, best);
  }
  return best;
}

#define LAPAL_BAIT_KERNEL(T, S)                                                                         \
  LAPAL_CLONES Best bait_step_kernel(const Pass<T, S>& pass, int64_t start, int64_t rows, T* scratch) { \
    return bait_tile(pass, start, rows, scratch);                                                       \
  }
LAPAL_FOR_POOL_TYPES(LAPAL_BAIT_KERNEL)
#undef LAPAL_BAIT_KERNEL

std::tuple<Tensor, Tensor> bait_step__cpu(const Tensor& pool, const Tensor& u, const Tensor& u_offset, const Tensor& w,
                                          const Tensor& w_offset, const Tensor& fisher_norm, const Tensor& beta,
                                          const Tensor& curvature, const Tensor& h, const Tensor& q,
                                          const Tensor& taken) {
  const BaitStepArguments call =
      check_bait_step(pool, u, u_offset, w, w_offset, fisher_norm, beta, curvature, h, q, taken);
  const int64_t n_rows = call.n_rows;

  Tensor index = torch::stable::new_empty(u, {}, ScalarType::Long);
  Tensor gain = torch::stable::new_empty(u, {});
  const Tensor dense_pool = with_contiguous_rows(pool);
  const Tensor dense_u = torch::stable::contiguous(u);
  const Tensor dense_w = torch::stable::contiguous(w);
  dispatch_floating(call.dtype, kOp, [&](auto compute) {
    using scalar_t = typename decltype(compute)::type;
    dispatch_storage(pool.scalar_type(), kOp, [&](auto storage) {
      using storage_t = typename decltype(storage)::type;
      Pass<scalar_t, Bits<storage_t>> pass{};
      pass.pool = rows_of<storage_t>(dense_pool);
      pass.u = {dense_u.const_data_ptr<scalar_t>(), *u_offset.const_data_ptr<scalar_t>()};
      pass.w = {dense_w.const_data_ptr<scalar_t>(), *w_offset.const_data_ptr<scalar_t>()};
      pass.fisher_norm = *fisher_norm.const_data_ptr<scalar_t>();
      pass.beta = *beta.const_data_ptr<scalar_t>();
      pass.moves = pass.beta != scalar_t(0);
      pass.curvature = curvature.const_data_ptr<scalar_t>();
      pass.curvature_stride = curvature.stride(0);
      pass.h = h.mutable_data_ptr<scalar_t>();
      pass.h_stride = h.stride(0);
      pass.q = q.mutable_data_ptr<scalar_t>();
      pass.q_stride = q.stride(0);
      pass.taken = {taken.mutable_data_ptr<bool>(), taken.stride(0)};
      const Best best = take_best<scalar_t>(
          n_rows, kMaxTileRows, 2 * kMaxTileRows, pass.taken, kOp,
          [&](int64_t start, int64_t rows, scalar_t* scratch) { return bait_step_kernel(pass, start, rows, scratch); });
      *index.mutable_data_ptr<int64_t>() = best.index;
      *gain.mutable_data_ptr<scalar_t>() = scalar_t(best.utility);
    });
  });
  return {index, gain};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(lapal_ext, CPU, m) {
  m.impl("bait_step_", TORCH_BOX(&bait_step__cpu));
}
