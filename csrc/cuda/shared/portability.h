// What a kernel may use of its compiler: nvcc for a GPU, or g++ for the emulator in tests/cuda_emulator.
//
//   LAPAL_LAUNCH(kernel, grid, block, shared_bytes, stream, arguments...)   kernel<<<...>>>(arguments...)
//   LAPAL_SHARED(T, name, n)         n values of T in shared memory; n is a constant
//   LAPAL_DYN_SHARED(T, name)        the shared_bytes of the launch as T, aligned to 16 bytes; once in a kernel
//   load_pack<kCount>(pointer)       kCount neighbours in one load; the pointer is aligned to all of them
//
// Both compilers also have __global__, __device__, __launch_bounds__, threadIdx, blockIdx, blockDim, gridDim,
// __syncthreads, __syncwarp, the __shfl_*_sync, __ballot_sync, __any_sync and __all_sync of a full warp, atomicAdd,
// atomicMax, atomicMin, atomicCAS and __threadfence. Nothing else is available: no cooperative groups and
// no CUB. The lanes of a warp are synchronised by these functions only.
#pragma once

#if defined(__CUDACC__)

#include <cuda_runtime.h>

#define LAPAL_LAUNCH(kernel, grid, block, shared_bytes, stream, ...) \
  kernel<<<(grid), (block), (shared_bytes), (stream)>>>(__VA_ARGS__)
#define LAPAL_SHARED(T, name, n) __shared__ T name[n]
// All instantiations of a template share one extern symbol, so it must have one type.
#define LAPAL_DYN_SHARED(T, name)                                       \
  extern __shared__ __align__(16) unsigned char lapal_dynamic_shared[]; \
  T* const name = reinterpret_cast<T*>(lapal_dynamic_shared)
#define LAPAL_CHECK_ALIGNED(pointer, bytes)

#else

#include "emulator.h"

#endif

#include <cstdint>

#include "shared/half_precision.h"
#include "shared/likelihood.h"
#include "shared/losses.h"
#include "shared/utilities.h"

namespace lapal_ext {

constexpr int kWarpSize = 32;
constexpr unsigned kFullWarp = 0xffffffffu;

// kCount values that one instruction loads or stores, at most 16 bytes.
template <class S, int kCount>
struct alignas(sizeof(S) * kCount) Pack {
  static_assert(sizeof(S) * kCount <= 16, "no instruction moves more than 16 bytes");
  S values[kCount];
};

template <int kCount, class S>
__device__ __forceinline__ Pack<S, kCount> load_pack(const S* from) {
  LAPAL_CHECK_ALIGNED(from, sizeof(S) * kCount);
  return *reinterpret_cast<const Pack<S, kCount>*>(from);
}

template <int kCount, class S>
__device__ __forceinline__ void store_pack(const Pack<S, kCount>& pack, S* to) {
  LAPAL_CHECK_ALIGNED(to, sizeof(S) * kCount);
  *reinterpret_cast<Pack<S, kCount>*>(to) = pack;
}

}  // namespace lapal_ext
